"""Caption metrics, equal to coco-caption's: `evaluation` puts together bleu, rouge, cider and the outside programs."""
