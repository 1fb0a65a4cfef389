"""Stand-ins for data sets: every file that full-scale runs read, in its official layout, with the right counts, names and sizes,
and contents without sense. Runs are rehearsed on them where the data cannot be had; `datamodules.files.stand_in` marks them.

One file a data set: coco, flickr30k (with Flickr30k Entities), visual_genome, nocaps. `share` is how much of a data set: 1 is all
of it. What is there already stays, so that a writer that was stopped goes on.

A few dozen photographs stand for all: the others are further names (hard links) of theirs. Likewise an image database holds the
regions of some hundred images, and all its keys lead to them (`shared_lmdb`).
"""
