"""Vision and text towers: timm, Hugging Face, CLIP."""
