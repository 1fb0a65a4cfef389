"""Kind `beit3-retrieval`: the whole network, forward and backward, with every adapter the recordings have.

Recorded from `BEiT3ForRetrieval` and MultiWay-Adapter's `multiway_encoder.py`.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from datamodules.errors import InputError, some
from datamodules.records import ImageBatch, TextBatch
from experiments.parity.compare import (
    EQUAL,
    GRADIENT,
    OUTPUT,
    STATE,
    GroupCheck,
    compare,
    compare_names,
    not_checked,
)
from experiments.parity.recordings import Recording
from lightning_modules.adapters.multiway import LayerMultiWay, MultiWayAdapter
from lightning_modules.checkpoints.beit3 import Account, load_official, to_official
from lightning_modules.networks.beit3 import UNUSED_POSITIONS, BEiT3Retrieval
from lightning_modules.objectives.contrastive import ContrastiveLoss

# What our BEiT-3 is built as; a recording that says otherwise is of another network.
_FIXED: dict[str, Any] = {
    "multiway": True,
    "layernorm_embedding": False,
    "normalize_output": True,
    "encoder_normalize_before": True,
    "no_scale_embedding": True,
    "subln": True,
    "deepnorm": False,
    "activation_fn": "gelu",
    "rel_pos_buckets": 0,
    "max_rel_pos": 0,
    "xpos_rel_pos": False,
    "moe_freq": 0,
}
_SIZES = (
    "img_size",
    "patch_size",
    "vocab_size",
    "encoder_embed_dim",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_embed_dim",
)
_ALIGNMENT: dict[Any, dict[str, Any]] = {  # ffn_enhance -> the reading it is
    True: {"reading": "released"},
    "multiway_ffn": {"reading": "printed"},
    "shared_adapter": {"reading": "text"},
}
# The released code swaps the names: `adaptmlp_text` serves image tokens, so ffn_mode "text" adapts only the image side.
_ACTIVE = {"both": ("image", "text"), "text": ("image",), "vision": ("text",), "none": ()}
_MODULE = {"image": "adaptmlp_text", "text": "adaptmlp_vision"}


class Unsupported(Exception):
    """What the recording asks for is nothing that our build has."""


def check(recording: Recording) -> list[GroupCheck]:
    """Every recorded tensor of a retrieval recording against our build with the same weights.

    Raises:
        InputError: The recording lacks an input or a size.
    """
    config, weights = recording.value("config"), recording.group("weights")
    if not weights:
        raise InputError(
            f"{recording.path.with_suffix('.safetensors')}: has no weights/...; a {recording.kind} recording needs them"
        )
    images, tokens = recording.tensor("inputs/image"), recording.tensor("inputs/text_ids")
    mask = recording.tensor("inputs/padding_mask") == 0  # recorded: 1 = padding
    if len(images) != len(tokens):
        raise InputError(
            f"{recording.path}: records {len(images)} images and {len(tokens)} texts; a {recording.kind} recording has pairs"
        )
    sizes = {name: int(recording.value("config", name)) for name in _SIZES}
    try:
        network, active = _build(recording, config, sizes, weights, tokens.shape[1])
    except (Unsupported, InputError) as error:
        return [not_checked("network", str(error))]
    network.eval()
    try:
        account = _load(network, weights)
    except InputError as error:
        return [GroupCheck("weights", "OFF", len(weights), note=str(error)), not_checked("outputs", "the weights do not fit")]
    rows = [_weights_row(account, len(weights)), _round_trip_row(network, weights)]
    _drop_knowledge(network, keep=active)

    outputs = recording.group("outputs")
    return rows + _forward(recording, network, config, images, tokens, mask, outputs)


# ------------------------------------------------------------------------------------------------------------- network


def _build(
    recording: Recording, config: dict[str, Any], sizes: dict[str, int], weights: dict[str, Tensor], length: int
) -> tuple[BEiT3Retrieval, tuple[str, ...]]:
    """Our network for a recording's configuration, with adapters, and the sides whose KE is at work.

    Raises:
        Unsupported: The recording is of something that our build cannot express.
        InputError: Our network refuses the sizes.
    """
    for key, ours in _FIXED.items():
        if key in config and (config[key] or 0) != (ours or 0):
            raise Unsupported(f"our BEiT-3 has {key} {ours}, the file {config[key]!r}")
    mode, dtype = str(recording.about.get("mode", "eval()")), recording.about.get("dtype", "float32")
    if not mode.startswith("eval") or dtype != "float32":
        raise Unsupported(f"recorded in mode {mode} and {dtype}; only eval() in float32 can be compared")
    positions = weights.get("beit3.encoder.embed_positions.B.weight")
    text_positions = len(positions) if positions is not None else 1024
    network = BEiT3Retrieval(
        image_size=sizes["img_size"],
        width=sizes["encoder_embed_dim"],
        num_layers=sizes["encoder_layers"],
        num_heads=sizes["encoder_attention_heads"],
        ffn_width=sizes["encoder_ffn_embed_dim"],
        patch_size=sizes["patch_size"],
        vocab_size=sizes["vocab_size"],
        text_positions=text_positions,
        max_tokens=min(length, text_positions - UNUSED_POSITIONS),
    )
    return network, _inject(network, config, weights)


def _inject(network: BEiT3Retrieval, config: dict[str, Any], weights: dict[str, Tensor]) -> tuple[str, ...]:
    enhance = config.get("ffn_enhance") or False
    if isinstance(enhance, str) and enhance.lower() in ("none", "false"):
        enhance = False
    if enhance is not False and enhance not in _ALIGNMENT:
        raise Unsupported(f"ffn_enhance {enhance!r} is none of the readings of the Alignment Enhancer")
    active: tuple[str, ...] = ()
    if config.get("ffn_adapt"):
        mode = config.get("ffn_mode", "both")
        if mode not in _ACTIVE:
            raise Unsupported(f"ffn_mode {mode!r} is unknown (both, text, vision, none)")
        active = _ACTIVE[mode]
    # One-sided recordings may still hold the other side's (unused) tensors: they are loaded and written back, then taken out.
    there = {side for side, name in _MODULE.items() if any(f".{name}." in key for key in weights)} | set(active)
    if not there and not enhance:
        return active
    width, d_model = config["encoder_embed_dim"], config.get("d_model")
    if there and d_model not in (None, width):
        raise Unsupported(f"a KE for width {d_model} in a network of width {width}; ours is as wide as its host")
    if active and config.get("ffn_option", "parallel") != "parallel":
        raise Unsupported(f"ffn_option {config['ffn_option']!r}; our KE is parallel to the FFN, as the paper's")
    scalar = config.get("ffn_adapter_scalar", 0.1)
    try:
        scale: float | Literal["learnable"] = "learnable" if scalar == "learnable_scalar" else float(scalar)
    except (TypeError, ValueError):
        raise Unsupported(f"ffn_adapter_scalar {scalar!r} is neither a number nor learnable_scalar") from None
    norm = config.get("ffn_adapter_layernorm_option", "none")
    if norm not in ("none", "in", "out"):
        raise Unsupported(f"ffn_adapter_layernorm_option {norm!r} is unknown (none, in, out)")
    options = _ALIGNMENT[enhance] if enhance else {"reading": "released"}
    if isinstance(enhance, str) and "ae_mid" in config:  # as released it is as wide as the FFN
        options = options | {"alignment_enhancer_mid": config["ae_mid"]}
    adapter = MultiWayAdapter(
        knowledge_extractor=bool(there),
        alignment_enhancer=bool(enhance),
        knowledge_extractor_mid=config.get("ffn_num") if there else None,
        scale=scale,
        layer_norm=norm,
        **options,
    )
    adapter.inject(network)
    _drop_knowledge(network, keep=tuple(there))
    return active


def _drop_knowledge(network: BEiT3Retrieval, keep: tuple[str, ...]) -> None:
    """Take the KE of the other sides out. No adapter option does that next to an AE on both sides; the layer computes it."""
    for layer in network.encoder.layers:
        if isinstance(multiway := layer.multiway, LayerMultiWay):
            for side in [side for side in multiway.knowledge_extractor if side not in keep]:
                del multiway.knowledge_extractor[side]


def _load(network: BEiT3Retrieval, weights: dict[str, Tensor]) -> Account:
    """Through the loader that users take, so it needs a file."""
    with TemporaryDirectory(prefix="crosslight-parity-") as folder:
        path = Path(folder) / "weights.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
        try:
            return load_official(network, path)
        except InputError as error:
            raise InputError(str(error).replace(str(path), "the recording")) from error


def _weights_row(account: Account, count: int) -> GroupCheck:
    problems = []
    if account.unexpected:
        problems.append(f"{len(account.unexpected)} recorded have no place here ({some(account.unexpected)})")
    if account.fresh:
        problems.append(f"{len(account.fresh)} of ours are not recorded ({some(account.fresh)})")
    if account.interpolated:
        problems.append(f"positions were interpolated {account.interpolated}: img_size does not fit the weights")
    return GroupCheck("weights taken", "OFF" if problems else "ok", count, note="; ".join(problems))


def _round_trip_row(network: BEiT3Retrieval, weights: dict[str, Tensor]) -> GroupCheck:
    written = to_official(network.state_dict())
    if written.keys() != weights.keys():
        return compare_names("weights written back", set(written), set(weights))
    return compare("weights written back", written, weights, EQUAL)


# -------------------------------------------------------------------------------------------------------------- compare


def _forward(
    recording: Recording,
    network: BEiT3Retrieval,
    config: dict[str, Any],
    images: Tensor,
    tokens: Tensor,
    mask: Tensor,
    outputs: dict[str, Tensor],
) -> list[GroupCheck]:
    rows: list[GroupCheck] = []
    encoder, count = network.encoder, len(images)
    compared: set[str] = set()

    def add(group: str, found: dict[str, Tensor], tolerance: Any, note: str = "", alias: dict[str, str] | None = None) -> None:
        """`alias`: recorded name of a tensor that is recorded under another than `found`'s key."""
        alias = alias or {}
        compared.update(alias.get(name, name) for name in found)
        wanted = {name: outputs[alias.get(name, name)] for name in found if alias.get(name, name) in outputs}
        lacking = sorted({alias.get(name, name) for name in found} - outputs.keys())
        if lacking and wanted:
            rows.append(not_checked(group, f"the file does not record {some(lacking)}"))
        rows.append(compare(group, found, wanted, tolerance, note))

    with torch.no_grad():
        patches = encoder.image_embed.patches(images).flatten(2).transpose(1, 2)
        embeddings = {
            "vision_embed_before_pos": torch.cat([encoder.image_embed.cls_token.expand(count, -1, -1), patches], dim=1),
            "text_embed_before_pos": encoder.text_embed.tokens(tokens),
        }
        seen = {"vision": encoder(images, hidden=True), "text": encoder(None, tokens, mask, hidden=True)}
    add("embeddings", embeddings, OUTPUT)
    states = {f"{side}_hidden_{i}": state for side, out in seen.items() for i, state in enumerate(out.hidden)}
    add("hidden states", states, STATE)
    add("encoder output", {f"{side}_encoder_out": out.tokens_BTD for side, out in seen.items()}, STATE)

    # Training computes only the first token of the last layer; the unit vectors are compared from both ways.
    pairs = ImageBatch(tuple(map(str, range(count))), torch.arange(count), images)
    captions = TextBatch(pairs.image_ids, ("",) * len(tokens), torch.arange(len(tokens)), torch.arange(len(tokens)), tokens, mask)
    images_BD, texts_BD = network.encode_images(pairs), network.encode_texts(captions)
    with torch.no_grad():
        heads = {"vision": network.image_head, "text": network.text_head}
        full = {side: F.normalize(heads[side](out.tokens_BTD[:, 0]), dim=-1) for side, out in seen.items()}
    units = {
        "vision_cls": images_BD,
        "language_cls": texts_BD,
        "vision_cls (all tokens)": full["vision"],
        "language_cls (all tokens)": full["text"],
    }
    add("unit vectors", units, OUTPUT, "", {name: name.removesuffix(" (all tokens)") for name in units})

    scale = network.logit_scale.exp()
    logits = scale * images_BD @ texts_BD.T
    add("logits", {"logits_per_image": logits, "logits_per_text": logits.T}, STATE)
    if config.get("loss", "both") != "both":
        why = f"the file's loss is one-sided ({config['loss']}); ours always has both directions"
        rows += [not_checked("loss", why), not_checked("gradients", why)]
    else:
        loss = ContrastiveLoss()(images_BD, texts_BD, scale)["loss"]
        add("loss", {"loss": loss}, OUTPUT)
        loss.backward()
        gradients = to_official({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
        rows.append(compare("gradients", gradients, recording.group("grads"), GRADIENT))

    had_knowledge = any(
        len(layer.multiway.knowledge_extractor) for layer in encoder.layers if isinstance(layer.multiway, LayerMultiWay)
    )
    _drop_knowledge(network, keep=())
    note = "KE off as in the official code (ours adapts fused input)" if had_knowledge else ""
    with torch.no_grad():
        add("fused output", {"fused_encoder_out": encoder(images, tokens, mask).tokens_BTD}, STATE, note)
    if beyond := sorted(outputs.keys() - compared - ({"loss"} if config.get("loss", "both") != "both" else set())):
        rows.append(not_checked("other outputs", f"ours gives none of {some(beyond)}"))
    return rows
