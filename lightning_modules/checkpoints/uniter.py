"""Official UNITER checkpoints: a flat dictionary of tensors, of pre-training (`uniter-base.pt`) or of a fine-tuned ranking model.
A checkpoint of our own runs in their place (RUN/checkpoints/best.ckpt#network.), and BERT of Hugging Face as a start, as UNITER
itself started.

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
from datamodules.files.releases import UNITER_CHECKPOINTS, uniter_checkpoint_file
from lightning_modules.checkpoints.places import split_part
from lightning_modules.checkpoints.weights import misfits, read_weights, require_sound_model, write_torch
from lightning_modules.networks.quiet_loading import hugging_face
from lightning_modules.networks.uniter import EPS, UniterRetrieval
from lightning_modules.networks.uniter_pretraining import UniterPretraining

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
_HEADS = {
    "itm": "itm_output",
    "rank": "rank_output",
    "words": "cls.predictions",  # its bias; likewise below
    "words.dense": "cls.predictions.transform.dense",
    "words.norm": "cls.predictions.transform.LayerNorm",
    "features": "feat_regress",
    "features.dense": "feat_regress.net.0",
    "features.norm": "feat_regress.net.2",
    "classes.dense": "region_classifier.net.0",
    "classes.norm": "region_classifier.net.2",
    "classes.out": "region_classifier.net.3",
}
_TIED = {  # what a pre-training file has twice: its second name, and its first
    "cls.predictions.decoder.weight": "uniter.embeddings.word_embeddings.weight",
    "feat_regress.weight": "uniter.img_embeddings.img_linear.weight",
}
_REGIONS = "encoder.region_embed."
_QKV = ("query", "key", "value")


def official_names(name: str) -> tuple[str, ...]:
    """Official name of one of our tensors (a state-dict name of `UniterRetrieval` or `UniterPretraining`); three for `qkv`.

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
    """Tensors (weights or gradients) under our names -> under the official ones; `qkv` becomes three views.

    Raises:
        InputError: The official layout has no place for one.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        names = official_names(name)
        out.update(zip(names, tensor.chunk(len(names)) if len(names) > 1 else (tensor,), strict=True))
    return out


def pretraining_to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a `UniterPretraining` as the released pre-training files have it: no ranking head, and what is tied twice."""
    out = to_official({name: tensor for name, tensor in state.items() if not name.startswith("rank.")})
    return out | {name: out[first] for name, first in _TIED.items()}


def _official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under official names, which those of our runs' checkpoints have not."""
    if any(name.startswith("encoder.layers.") for name in state):
        return to_official(state)
    return {_modern(name): tensor for name, tensor in state.items()}


def _modern(name: str) -> str:
    """Old TensorFlow spellings of LayerNorm's parameters, and the prefix `bert.` that the official loader accepts."""
    name = name.replace(".gamma", ".weight").replace(".beta", ".bias")
    return f"uniter.{name.removeprefix('bert.')}" if name.startswith("bert.") else name


def load(network: UniterRetrieval, source: str) -> frozenset[str]:
    """Fill a network from an official checkpoint (a file, or an official name) or one of our runs, or else from a BERT of Hugging
    Face.

    Returns:
        Names of the parameters that it did not bring.

    Raises:
        InputError: There is no such thing, or it does not fit.
    """
    names = {Path(name).stem for name in UNITER_CHECKPOINTS} | set(UNITER_CHECKPOINTS)
    file, _ = split_part(source)
    if Path(file).expanduser().is_file() or file in names or file.endswith((".pt", ".ckpt", ".safetensors")) or "://" in file:
        return _load_file(network, source)[0]
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
    guesses = isinstance(network, UniterPretraining)
    if guesses:
        state |= _head_of_bert(name)
    own = network.state_dict()
    taken, wrong, missing = {}, [], []
    for ours, target in own.items():
        if ours.startswith(("rank.", "itm.", "features.", "classes.", _REGIONS)):
            continue
        names = official_names(ours)
        if lost := [each for each in names if each not in state]:
            missing += [] if ours.startswith("words.") else lost  # many a BERT comes without its head
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
    head = " but that of hidden words" if "words.bias" in taken else ""
    log.info("%s: %d tensors taken; regions and heads%s start from random weights", source, len(taken), head)
    return frozenset(name for name, _ in network.named_parameters() if name not in taken)


def _head_of_bert(name: str) -> dict[str, Tensor]:
    """BERT's head for hidden words, under UNITER's names; nothing where it comes without."""
    from transformers import BertForMaskedLM

    model, told = BertForMaskedLM.from_pretrained(name, trust_remote_code=False, output_loading_info=True)
    head = {key: tensor for key, tensor in model.state_dict().items() if key.startswith("cls.predictions.")}
    decoder = head.pop("cls.predictions.decoder.weight", None), head.pop("cls.predictions.decoder.bias", None)
    del decoder  # the table of words once more, and the bias
    return {} if any(key in head for key in told["missing_keys"]) else head


def _misfits(state: Mapping[str, Tensor], names: tuple[str, ...], target: Tensor) -> list[str]:
    """As `misfits`, of a tensor of ours that a file has in parts."""
    parts = target.chunk(len(names)) if len(names) > 1 else (target,)
    return misfits(state, dict(zip(names, parts, strict=True)))


def _joined(state: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
    return state[names[0]] if len(names) == 1 else torch.cat([state[name] for name in names])


def load_official(network: UniterRetrieval, source: str | Path) -> frozenset[str]:
    """Fill a network from an official checkpoint, by path or by official name, or from one of our runs
    (RUN/checkpoints/best.ckpt#network.); fp16 tensors become the network's dtype.

    A pre-training file brings no ranking head: it then starts from the matching head's row "matched" (`init_output`). The
    ranking head of a fine-tuned file is kept (the official inference script overwrites it with the stale matching head). A file
    that has learnt from texts alone brings no embedding of regions, which then stays as it is.

    Returns:
        Names of the file's tensors that have no place here (the heads of masked pre-training).

    Raises:
        InputError: No such file or name, encoder tensors missing, or other shapes. The network is unchanged then.
    """
    return _load_file(network, source)[1]


def _load_file(network: UniterRetrieval, source: str | Path) -> tuple[frozenset[str], frozenset[str]]:
    """See `load_official`. Returns the network's parameters that the file did not bring, and its tensors without a place here."""
    name, part = split_part(str(source))
    path = f"{uniter_checkpoint_file(name)}{part}"
    state = _official(read_weights(path))
    heads = {name for name, _ in network.head_parameters()} | {"rank.weight", "rank.bias"}
    regions = {name: official_names(name) for name in network.state_dict() if name.startswith(_REGIONS)}
    blind = not any(each in state for names in regions.values() for each in names)
    unlearnt = {*regions, "encoder.pooler.weight", "encoder.pooler.bias"} if blind else {f"{_REGIONS}mask_feature.weight"}
    spared = heads | network.unused_parameters() | unlearnt
    taken: dict[str, tuple[str, ...]] = {}
    lost, wrong = [], []
    used: set[str] = set(_TIED) if isinstance(network, UniterPretraining) else set()
    for name, target in network.state_dict().items():
        names = official_names(name)
        used.update(names)
        absent = [each for each in names if each not in state]
        if absent:
            lost += [] if name in spared else absent
            continue
        wrong += _misfits(state, names, target)
        taken[name] = names
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
    brought = taken.keys() | ({"rank.weight", "rank.bias"} if "itm.weight" in taken else set())
    network.loaded_heads = frozenset(name for name, _ in network.head_parameters() if name in brought)
    extra = frozenset(state.keys() - used)
    log.info(
        "%s: %d tensors taken%s%s%s",
        path,
        len(taken),
        "" if "rank.weight" in taken else "; the ranking head starts from the matching head",
        "; it has seen no regions, whose embedding stays random" if blind else "",
        f"; {len(extra)} of it have no place here ({some(sorted(extra))})" if extra else "",
    )
    fresh = frozenset(name for name, _ in network.named_parameters() if name not in brought and (name in heads or name in spared))
    return fresh, extra


def write_official(network: UniterRetrieval, path: str | Path) -> Path:
    """Write the network as the official `ModelSaver` does: a flat state dict, of a `UniterPretraining` that of pre-training.

    Raises:
        InputError: The file exists.
    """
    path = Path(path)
    if path.exists():
        raise InputError(f"{path} exists already; choose another name or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    state = pretraining_to_official(network.state_dict()) if isinstance(network, UniterPretraining) else None
    state = to_official(network.state_dict()) if state is None else state
    write_torch({name: tensor.detach().cpu().clone() for name, tensor in state.items()}, path)
    return path
