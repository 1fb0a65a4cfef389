"""Made once, before training: checks, text databases, index files. They need tokenizers, so they are no formats."""
