"""Hugging Face's hub, asked once and shortly whether it is there: its own library tries for half a minute, at every file anew."""

from __future__ import annotations

import logging
import ssl
from functools import cache
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

log = logging.getLogger("crosslight")

_SECONDS = 5.0


def without_waiting(name: str) -> None:
    """Before something is loaded by its name on the hub: where it cannot be reached, only its cache is used from here on, and
    what is not in it fails at once. For a folder or a file of this machine: nothing.

    Args:
        name: Of a model or a tokenizer, or a path.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode() or Path(name).expanduser().exists():
        return
    if not answers(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = True
        log.warning("%s cannot be reached; only what is in its cache is used.", constants.ENDPOINT)


@cache
def answers(endpoint: str) -> bool:
    """Whether anything at all comes back from an address, be it an error page or an unknown certificate. Asked once, through a
    proxy where one is set."""
    try:
        urlopen(Request(endpoint, method="HEAD"), timeout=_SECONDS).close()
    except HTTPError:
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True
