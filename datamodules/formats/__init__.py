"""One file an on-disk format: each reads its files into `datamodules.records` and knows nothing of batches."""
