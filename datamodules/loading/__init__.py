"""Records -> batches: one task a file, and what they share."""
