"""Caption metrics, equal to coco-caption's: one file each; `caption_metric` says what they owe, `evaluation` joins them."""
