"""From records to batches: one task a file, and what they share.

Everything random is a pure function of (seed, epoch, sample): `mix` hashes them. So the batches do not depend on the number of
workers or processes, and a run can start in the middle of an epoch. A sampler yields whole batches of keys and a data set
turns one key list into one typed batch (PyTorch's `batch_size=None` mode): no collate function, and nothing for Lightning to
rebuild.
"""
