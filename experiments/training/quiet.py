"""Lightning's adverts and remarks, filtered."""

from __future__ import annotations

import logging
import os
import warnings

# Lightning prints advertisements and remarks on settings that are right here. Everything else of its log stays.
_ADVERTS = (
    "litlogger", "litmodels", "💡", "Tip:", "LitServe", "lightning.ai", "`Trainer.fit` stopped:", "Restoring states",
    "Restored all states", "Loaded model weights", "GPU available", "TPU available", "HPU available", "Seed set to",
    "Automatic Mixed Precision", "to estimate number of stepping", "Initializing distributed", "distributed_backend",
    "All distributed processes", "--------------", "Starting with ", "was configured so validation will run",
)  # fmt: skip
_LIGHTNING_LOGS = (
    "lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric", "lightning.fabric.utilities.seed",
    "lightning.fabric.utilities.rank_zero", "lightning.fabric.utilities.distributed",
)  # fmt: skip


class _NoAdverts(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return bool(message.strip()) and not any(advert in message for advert in _ADVERTS)


def quiet() -> None:
    """Filter Lightning's adverts and the warnings that are about nothing the user can or should change."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in _LIGHTNING_LOGS:
        logging.getLogger(name).addFilter(_NoAdverts())
    for pattern in (
        ".*does not have many workers.*",  # two cores: the loader is measured, not guessed
        ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run
        ".*`isinstance\\(treespec, LeafSpec\\)`.*",
        ".*It is recommended to use `self.log.*sync_dist=True.*",  # recalls are already exact over all ranks
        ".*number of training batches .* is smaller than the logging interval.*",
        ".*Found .* module\\(s\\) in eval mode at the start of training.*",  # frozen parts are meant to be
        ".*was configured so that.*lr_scheduler.step.*",
        ".*when using `ckpt_path`, callbacks used to create the checkpoint need to be provided.*",  # evaluation keeps none
        ".*`max_epochs` was not set.*",  # `CrosslightCLI` says it with the option's name
        ".*was called before the ``update`` method.*",  # of several processes one may have nothing of a small split
        "(?s).*Unable to serialize instance.*",  # refused where config.yaml would hold it
    ):
        warnings.filterwarnings("ignore", pattern)
