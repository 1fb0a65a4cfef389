"""A trained model looked into: attention maps, grounding, captions, what was retrieved."""
