"""Weights files of causal language models."""

from __future__ import annotations

from torch import Tensor, nn

from datamodules.errors import InputError, some
from lightning_modules.checkpoints.weights import misfits

_OLD_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


def load_language_weights(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Fill a causal language model strictly; a tied head may be left out, buffers of old releases (causal masks) are passed over.

    Raises:
        InputError: Keys are missing or left over, or shapes differ. The model is unchanged then.
    """
    own = model.state_dict()
    by_storage: dict[int, str] = {}
    tied = {name: by_storage.setdefault(tensor.data_ptr(), name) for name, tensor in own.items() if tensor.numel()}
    for name, first in tied.items():
        group = [other for other, start in tied.items() if start == first and other in state]
        if name not in state and group and not own[name].is_meta:
            state = {**state, name: state[group[0]]}
    extra = sorted(name for name in state.keys() - own.keys() if not name.endswith(_OLD_BUFFERS))
    missing = sorted(own.keys() - state.keys())
    wrong = misfits(state, own)
    if missing or extra or wrong:
        raise InputError(
            f"{source} does not fit {type(model).__name__} (missing: {some(missing) or 'none'}; left over: "
            f"{some(extra) or 'none'}; other shapes: {some(wrong) or 'none'}); choose the configuration it was made with"
        )
    model.load_state_dict({name: state[name] for name in own})
