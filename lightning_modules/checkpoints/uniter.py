"""Official UNITER checkpoints: a flat dictionary of tensors, of pre-training (`uniter-base.pt`) or of a fine-tuned ranking model.
And BERT of Hugging Face as a start, as UNITER itself started.

Official files: ChenRocks/UNITER `model/model.py` (`from_pretrained`), `model/itm.py`. Every tensor of ours has one official name,
except the packed `qkv`, which is three.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from datamodules.errors import InputError, some
from datamodules.files.atomic import whole_file
from datamodules.files.releases import UNITER_CHECKPOINTS, uniter_checkpoint_file
from lightning_modules.checkpoints.weights import misfits, read_weights, require_sound_model
from lightning_modules.networks.quiet_loading import hugging_face
from lightning_modules.networks.uniter import EPS, UniterRetrieval

log = logging.getLogger("crosslight")

_EMBEDDINGS = {
    "text_embed.words": "embeddings.word_embeddings",
    "text_embed.positions": "embeddings.position_embeddings",
    "text_embed.types": "embeddings.token_type_embeddings",
    "text_embed.norm": "embeddings.LayerNorm",
    "region_embed.features": "img_embeddings.img_linear",
    "region_embed.feature_norm": "img_embeddings.img_layer_norm",
    "region_embed.boxes": "img_embeddings.pos_linear",
    "region_embed.box_norm": "img_embeddings.pos_layer_norm",
    "region_embed.norm": "img_embeddings.LayerNorm",
    "region_embed.mask_feature": "img_embeddings.mask_embedding",
}
_LAYER = {
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
_HEADS = {"itm": "itm_output", "rank": "rank_output"}
_QKV = ("query", "key", "value")


def official_names(name: str) -> tuple[str, ...]:
    """Official name of one of our tensors (a state-dict name of `UniterRetrieval`); three for `qkv`.

    Raises:
        InputError: The official layout has no place for it.
    """
    module, _, leaf = name.rpartition(".")
    if module in _HEADS:
        return (f"{_HEADS[module]}.{leaf}",)
    module = module.removeprefix("encoder.")
    if module in _EMBEDDINGS:
        return (f"uniter.{_EMBEDDINGS[module]}.{leaf}",)
    if module == "pooler":
        return (f"uniter.pooler.dense.{leaf}",)
    parts = module.split(".")
    if parts[0] == "layers" and len(parts) == 3:
        layer = f"uniter.encoder.layer.{parts[1]}"
        if parts[2] == "qkv":
            return tuple(f"{layer}.attention.self.{part}.{leaf}" for part in _QKV)
        if parts[2] in _LAYER:
            return (f"{layer}.{_LAYER[parts[2]]}.{leaf}",)
    raise InputError(f"{name} has no place in the official UNITER layout")


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors (weights or gradients) under our names -> under the official ones; `qkv` becomes three views."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        names = official_names(name)
        out.update(zip(names, tensor.chunk(len(names)) if len(names) > 1 else (tensor,), strict=True))
    return out


def _modern(name: str) -> str:
    """Old TensorFlow spellings of LayerNorm's parameters, and the prefix `bert.` that the official loader accepts."""
    name = name.replace(".gamma", ".weight").replace(".beta", ".bias")
    return f"uniter.{name.removeprefix('bert.')}" if name.startswith("bert.") else name


def load(network: UniterRetrieval, source: str) -> frozenset[str]:
    """Fill a network from an official checkpoint (a file, or an official name), or else from a BERT of Hugging Face.

    Returns:
        Names of the parameters that it did not bring.

    Raises:
        InputError: There is no such thing, or it does not fit.
    """
    names = {Path(name).stem for name in UNITER_CHECKPOINTS} | set(UNITER_CHECKPOINTS)
    if Path(source).expanduser().is_file() or source in names or source.endswith((".pt", ".safetensors")):
        load_official(network, source)
        return frozenset(name for name, _ in network.head_parameters()) - network.loaded_heads
    return load_bert(network, source)


def load_bert(network: UniterRetrieval, source: str) -> frozenset[str]:
    """Words, positions, types, layers and pooler of a BERT by hub name or folder; regions and heads stay as they are.

    Returns:
        Names of the parameters that stay.

    Raises:
        InputError: It cannot be loaded, or has other sizes than the network.
    """
    from transformers import AutoConfig, BertModel

    name = str(Path(source).expanduser())
    official = f"neither an official UNITER checkpoint ({', '.join(UNITER_CHECKPOINTS)}, or a file) nor a BERT of Hugging Face"
    with hugging_face(f"weights {source}: {official}", "give one of these", name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if config.model_type != "bert":
            raise InputError(f"weights {source}: a {config.model_type}, not a BERT, which is what UNITER is made of")
        bert = BertModel.from_pretrained(name, trust_remote_code=False)
    require_sound_model(bert, name)
    state = {f"uniter.{key}": tensor for key, tensor in bert.state_dict().items()}
    own = network.state_dict()
    taken, wrong, missing = {}, [], []
    for ours, target in own.items():
        if ours.startswith(("rank.", "itm.", "encoder.region_embed.")):
            continue
        names = official_names(ours)
        if lost := [each for each in names if each not in state]:
            missing += lost
            continue
        wrong += _misfits(state, names, target)
        taken[ours] = names
    more = {key for key in state if key.startswith("uniter.encoder.layer.")} - {o for n in taken for o in official_names(n)}
    if wrong or missing or more:
        raise InputError(
            f"weights {source}: a BERT of {config.num_hidden_layers} layers, width {config.hidden_size}, FFN "
            f"{config.intermediate_size}, {config.vocab_size} words and {config.max_position_embeddings} positions; set "
            "num_layers, width, ffn_width, vocab_size and text_positions of the network to these "
            f"({some(wrong or missing or sorted(more))})"
        )
    if config.num_attention_heads != network.num_heads:
        raise InputError(
            f"weights {source}: {config.num_attention_heads} attention heads, here {network.num_heads}; set num_heads"
        )
    if config.layer_norm_eps != EPS:
        log.info("%s has LayerNorm epsilon %g, UNITER %g", source, config.layer_norm_eps, EPS)
    network.load_state_dict({ours: _joined(state, names) for ours, names in taken.items()}, strict=False)
    log.info("%s: %d tensors taken; regions and heads start from random weights", source, len(taken))
    return frozenset(name for name, _ in network.named_parameters() if name not in taken)


def _misfits(state: Mapping[str, Tensor], names: tuple[str, ...], target: Tensor) -> list[str]:
    """As `misfits`, of a tensor of ours that a file has in parts."""
    parts = target.chunk(len(names)) if len(names) > 1 else (target,)
    return misfits(state, dict(zip(names, parts, strict=True)))


def _joined(state: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
    return state[names[0]] if len(names) == 1 else torch.cat([state[name] for name in names])


def load_official(network: UniterRetrieval, source: str | Path) -> frozenset[str]:
    """Fill a network from an official checkpoint, by path or by official name; fp16 tensors become the network's dtype.

    A pre-training file brings no ranking head: it then starts from the matching head's row "matched" (`init_output`). The
    ranking head of a fine-tuned file is kept (the official inference script overwrites it with the stale matching head).

    Returns:
        Names of the file's tensors that have no place here (the heads of masked pre-training).

    Raises:
        InputError: No such file or name, encoder tensors missing, or other shapes. The network is unchanged then.
    """
    path = uniter_checkpoint_file(source)
    state = {_modern(name): tensor for name, tensor in read_weights(path).items()}
    own = network.state_dict()
    taken: dict[str, tuple[str, ...]] = {}
    missing, wrong = [], []
    used: set[str] = set()
    for name, target in own.items():
        names = official_names(name)
        used.update(names)
        absent = [each for each in names if each not in state]
        if absent:
            missing += [(name, each) for each in absent]
            continue
        wrong += _misfits(state, names, target)
        taken[name] = names
    lost = [each for name, each in missing if not name.startswith(("rank.", "itm."))]
    if lost:
        raise InputError(
            f"{path} lacks {len(lost)} tensors of this UNITER ({some(lost)}); it is another model or a smaller one: check "
            "num_layers, or give an official UNITER checkpoint"
        )
    if wrong:
        raise InputError(
            f"{path} has other shapes than this UNITER: {some(wrong)}; set width, num_heads, ffn_width, vocab_size and "
            "feature_width of the network to the file's"
        )
    joined = {name: _joined(state, names) for name, names in taken.items()}
    network.load_state_dict(joined, strict=False)
    if "rank.weight" not in taken and "itm.weight" in taken:
        network.rank_from_itm()
    network.loaded_heads = frozenset(name for name, _ in network.head_parameters() if name in taken or "itm.weight" in taken)
    extra = frozenset(state.keys() - used)
    log.info(
        "%s: %d tensors taken%s%s",
        path,
        len(taken),
        "" if "rank.weight" in taken else "; the ranking head starts from the matching head",
        f"; {len(extra)} of it have no place here ({some(sorted(extra))})" if extra else "",
    )
    return extra


def write_official(network: UniterRetrieval, path: str | Path) -> Path:
    """Write the network as the official `ModelSaver` does: a flat state dict.

    Raises:
        InputError: The file exists.
    """
    path = Path(path)
    if path.exists():
        raise InputError(f"{path} exists already; choose another name or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        torch.save({name: tensor.detach().cpu().clone() for name, tensor in to_official(network.state_dict()).items()}, part)
    return path
