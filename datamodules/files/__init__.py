"""Files as such: text, JSON, YAML, images opened; downloads, releases; written whole or not at all; locks; whose a folder is."""
