"""Karpathy's split files: where the archive is, what it is known by, and who else has it.

Its own server was reported gone (404) in September 2023 (ruotianluo/ImageCaptioning.pytorch issues 184 and 186,
yahoo/object_relation_transformer issue 21), so copies are tried after it. Size and SHA-256 are those of the copy in
acul3/pmd_indonesia on the Hugging Face Hub (its pointer file, commit 85a3e098), whose size is the official one's. The copy in
gpantaz/karpathy_split is the one that GitHub's vl-mamba reads.
"""

from __future__ import annotations

from datamodules.files.download import Remote

KARPATHY = Remote(
    "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    36_745_453,
    sha256="4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
    others=("https://huggingface.co/datasets/gpantaz/karpathy_split/resolve/main/caption_datasets.zip",),
)
FLICKR30K_FORM = "https://shannon.cs.illinois.edu/DenotationGraph/"
FLICKR8K_FORM = "https://hockenmaier.cs.illinois.edu/8k-pictures.html"
