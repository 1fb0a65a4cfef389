"""The run folder: the one contract between all rooms."""
