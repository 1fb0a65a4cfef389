"""Stand-ins for weights and tokenizers: files of the official layouts, names, shapes and types, with random values.

official      BEiT-3's and UNITER's checkpoints, BEiT-3's sentencepiece file
hub           a cache of the Hugging Face hub (HF_HOME) with models and tokenizers: a recipe's own `name:` loads
vocabularies  tokenizers of the right sizes
values        the random values
"""
