"""Where the layers and FFNs of a causal language model are, family by family."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from datamodules.errors import InputError


@dataclass(frozen=True)
class Site:
    """Where things are in a causal language model of Hugging Face. The last three are relative to a layer."""

    layers: str
    first: str  # first module of the FFN: its input is X
    last: str  # last module of the FFN: its output is FFN(X)
    norm: str  # norm before the FFN: its input is the residual stream


_LLAMA = Site("model.layers", "mlp", "mlp", "post_attention_layernorm")

# By model_type; only those whose forward was read: residual + FFN(norm(residual)) with nothing behind the FFN but dropout.
SITES: dict[str, Site] = {
    "gpt2": Site("transformer.h", "mlp", "mlp", "ln_2"),
    "gpt_neox": Site("gpt_neox.layers", "mlp", "mlp", "post_attention_layernorm"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "opt": Site("model.decoder.layers", "fc1", "fc2", "final_layer_norm"),
}


def find_language_model(network: nn.Module) -> tuple[nn.Module, Site]:
    """The causal language model in a network, and where its FFNs are.

    Raises:
        InputError: There is none of a known kind (the message names what was found).
    """
    kinds = []
    for module in network.modules():
        kind = getattr(getattr(module, "config", None), "model_type", None)
        if kind is None:
            continue
        kinds.append(f"{type(module).__name__} ({kind})")
        site = SITES.get(kind)
        if site is not None and any(name == site.layers for name, _ in module.named_modules()):
            return module, site
    found = ", ".join(dict.fromkeys(kinds)) or "no model of Hugging Face"
    raise InputError(
        f"{type(network).__name__} has no causal language model whose layers are known ({', '.join(SITES)}); it has {found}; "
        "choose one of those families as the captioner's language model"
    )
