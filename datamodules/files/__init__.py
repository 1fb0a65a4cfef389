"""Files as such: downloads and releases; written whole or not at all; locks; whose a folder is."""
