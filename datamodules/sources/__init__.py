"""What the files of each data set are, one data set a file, named as the data set. No torch: see `datamodules.source`."""
