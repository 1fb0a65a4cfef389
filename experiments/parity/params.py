"""`crosslight params`: tunable and total parameters, counted on networks of the real classes on the meta device.

Nothing is loaded and no memory is taken, so that BEiT-3 large costs no more than a tiny one. Heads count as brought by the
checkpoint, as official retrieval and ITC weights bring them. Sizes of models that the hub has are those of the stand-ins.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn

from datamodules.errors import InputError
from lightning_modules.adapters.clipcap import ClipCap
from lightning_modules.adapters.i_tuning import ITuning
from lightning_modules.adapters.lora import LoRAAdapter
from lightning_modules.adapters.multiway import READINGS, MultiWayAdapter
from lightning_modules.adapters.tuning import ParameterCounts, TuningMode, count_parameters, head_names, set_tuning
from lightning_modules.checkpoints.standin.hub import hub_config, hub_names
from lightning_modules.networks.beit3 import BEiT3Retrieval
from lightning_modules.networks.blip import BLIP
from lightning_modules.networks.bridgetower import BridgeTower
from lightning_modules.networks.captioner import Captioner
from lightning_modules.networks.language_model import LanguageModel
from lightning_modules.networks.network import Network, RetrievalNetwork
from lightning_modules.networks.open_clip_dual_encoder import OpenCLIPDualEncoder
from lightning_modules.networks.pretrained_dual_encoder import HFDualEncoder
from lightning_modules.networks.start import RANDOM
from lightning_modules.networks.towers.base import ImageTower
from lightning_modules.networks.towers.clip import ProjectedCLIPTower
from lightning_modules.networks.towers.hugging_face import HFImageTower
from lightning_modules.networks.uniter import UniterRetrieval
from lightning_modules.networks.uniter_pretraining import UniterPretraining
from lightning_modules.networks.vilt import ViLT
from lightning_modules.networks.visual_bert import VisualBERT
from lightning_modules.objectives.relation_alignment import IAIS, Kind, Reading

BASE: dict[str, int] = {}  # the defaults of BEiT3Retrieval
LARGE = {"width": 1024, "num_layers": 24, "num_heads": 16, "ffn_width": 4096}
SIZES: dict[str, dict[str, Any]] = {
    f"{name} {px}": {**sizes, "image_size": px} for name, sizes in (("base", BASE), ("large", LARGE)) for px in (224, 384)
}
UNITER: dict[str, dict[str, Any]] = {"base": {}, "large": LARGE}  # its sizes are BERT's, and so BEiT-3's
REGION_CLASSES = 1601  # of the released features' detector
OWN_REGIONS = {"feature_width": 1024}  # of our extractor (configs/model/uniter_pretraining_base.yaml), which gives no classes
ADAPTED_CLIP = "openai/clip-vit-base-patch32"  # clip/adapt
OPEN_CLIP = ("ViT-B-32", "ViT-L-14", "ViT-H-14")  # clip/zero_shot
GPT2: dict[str, dict[str, int]] = {
    "base": {},
    "medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "large": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
}
CLIP_B = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 512,
}
KE_MIDS = (1, 16, 32, 64, 128)  # Figure 2

MULTIWAY: dict[str, dict[str, Any]] = {
    "mwa (printed)": {},
    "mwa_released": {"reading": "released"},
    "mwa_text": {"reading": "text"},
    "ae_only": {"knowledge_extractor": False},
    **{f"ke_only, mid {mid}": {"alignment_enhancer": False, "knowledge_extractor_mid": mid} for mid in KE_MIDS},
}


@dataclass(frozen=True)
class Count:
    """One configuration of one network.

    Args:
        name: Count of the tables it belongs to (experiments/papers/mwa/variants).
        counts: Its parameters.
        exported: Whether what trains can be exported on its own; a fully tuned network is kept whole.
    """

    name: str
    counts: ParameterCounts
    exported: bool

    def __str__(self) -> str:
        size = f"{self.counts.trainable * 4 / 1e6:,.1f}" if self.exported else "-"
        counts = self.counts
        return f"  {self.name:<24}{counts.trainable:>13,}{counts.total:>13,}{counts.percent:>9.2f}{size:>10}"


HEADER = f"  {'':<24}{'tunable':>13}{'total':>13}{'%':>9}{'MB':>10}"


def build(size: str) -> BEiT3Retrieval:
    """BEiT-3 without memory, its heads as if a checkpoint had brought them.

    Args:
        size: "base 224", "base 384", "large 224" or "large 384".
    """
    with torch.device("meta"):
        network = BEiT3Retrieval(**SIZES[size])
    network.loaded_heads = head_names(network)
    return network


def table(built: Network) -> list[Count]:
    """Every configuration of one network, which stays as it is.

    Args:
        built: The network, without memory.
    """

    def plain(name: str, mode: TuningMode) -> Count:
        return Count(name, set_tuning(copy.deepcopy(built), None, mode), exported=mode != "full")

    def adapted(name: str, **options: Any) -> Count:
        network, adapter = copy.deepcopy(built), MultiWayAdapter(**options)
        adapter.inject(network)
        return Count(name, set_tuning(network, adapter, "adapter"), exported=True)

    rows = [plain("full", "full"), plain("head", "head"), plain("frozen", "frozen")]
    rows += [adapted(name, **options) for name, options in MULTIWAY.items()]
    budget = next(row.counts.adapter for row in rows if row.name == "mwa (printed)")
    rows += [lora(built, LoRAAdapter(budget=budget, targets="all"), "lora")]
    rows += [lora(built, LoRAAdapter(budget=budget, targets="attention"), "lora, attention")]
    return rows


def lora(network: nn.Module, adapter: LoRAAdapter, name: str) -> Count:
    """LoRA's row, without peft: its parameters follow from the layers it would go to."""
    counts = count_parameters(network)
    rank, added = adapter.size(network)
    return Count(
        f"{name}, rank {rank}",
        ParameterCounts(counts.total + added, added, counts.backbone, added, counts.heads),
        exported=True,
    )


def parameters(module: nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


def printed_large() -> str:
    """Why the paper's 17.40 M for large is not in the table: the sum it comes from, computed with the real modules."""
    values, layers, width = READINGS["printed"], LARGE["num_layers"], LARGE["width"]
    with torch.device("meta"):
        narrow, right = parameters(values.knowledge_extractor(768)), parameters(values.knowledge_extractor(width))
        enhancer = parameters(values.alignment_enhancer(width, LARGE["ffn_width"]))
    each = 2 * layers
    printed, runs = each * (narrow + enhancer), each * (right + enhancer)
    total = sum(parameter.numel() for parameter in build("large 384").parameters())
    return (
        f"The paper prints 17.40 M (2.58 %) for large. That only appears, to rounding, when the KE is counted at width 768, the\n"
        f"default of the released script's --d_model: {layers} layers x 2 x (KE(768, 64) {narrow:,} + AE({width}, 128) "
        f"{enhancer:,}) = {printed:,},\n{100 * printed / total:.2f} %. Such a model cannot run: large is {width} wide. With "
        f"KE({width}, 64) {right:,} it is {runs:,}, {100 * runs / total:.2f} %."
    )


def uniter() -> list[str]:
    """UNITER with its two heads, what it is pre-trained with, and what IAIS adds in any of its forms."""
    lines = [f"UNITER{'':<19}{'retrieval':>13}{'encoder':>13}{'layers':>13}{'pre-training':>14}"]
    sizes = {size: (options, REGION_CLASSES) for size, options in UNITER.items()}
    for name, (options, classes) in {**sizes, "base, own regions": (OWN_REGIONS, None)}.items():
        with torch.device("meta"):
            network, whole = UniterRetrieval(**options), UniterPretraining(classes, **options)
        learns = set_tuning(whole, None, "full").trainable  # without the ranking head, which takes no part
        counts = (parameters(network), parameters(network.encoder), parameters(network.encoder.layers))
        lines.append(f"  {name:<23}" + "".join(f"{count:>13,}" for count in counts) + f"{learns:>14,}")
    added = {parameters(IAIS(kind, reading)) for kind in get_args(Kind) for reading in get_args(Reading)}
    said = " or ".join(f"{count:,}" for count in sorted(added))
    lines.append(f"  IAIS adds {said}{': the loss has no parameters' if added == {0} else ''}")
    return lines


def pair_scorers() -> list[str]:
    """Pair scorers of Hugging Face at the sizes of their base models."""
    with torch.device("meta"):
        networks: dict[str, Network] = {
            "VisualBERT base": VisualBERT(config={"visual_embedding_dim": 2048}),
            "ViLT base": ViLT(config={}, tokenizer="none"),
            "BLIP base": BLIP(config={}, tokenizer="none"),
            "BridgeTower base": BridgeTower(config={}, tokenizer="none"),
        }
    return _adaptable("Pair scorers", networks)


def dual_encoder(name: str) -> HFDualEncoder:
    """A model of the hub without memory and unread, its heads as if they had been brought.

    Args:
        name: One of `hub_names`.
    """
    config, longest = hub_config(name)
    with torch.device("meta"):
        network = HFDualEncoder(config=config, tokenizer="none", max_tokens=longest)
    network.loaded_heads = head_names(network)
    return network


def dual_encoders() -> list[str]:
    """Those of clip/zero_shot, by the names that their weights have."""
    named = [name for name in hub_names() if hub_config(name)[0]["model_type"] in ("clip", "siglip")]
    networks: dict[str, Network] = {name: dual_encoder(name) for name in named}
    try:
        with torch.device("meta"):
            networks |= {f"open_clip {name}": OpenCLIPDualEncoder(name) for name in OPEN_CLIP}
        more = []
    except InputError as error:
        more = [f"  not counted: {error}"]
    return [*_adaptable("Dual encoders", networks), *more]


def _adaptable(title: str, networks: Mapping[str, Network]) -> list[str]:
    """Networks with their heads, what LoRA adds and what MultiWay-Adapter does, which they have afterwards."""
    lines = [f"{title:<35}{'retrieval':>15}{'head':>13}{'LoRA, rank 8':>13}{'MWA':>13}"]
    for name, network in networks.items():
        whole, head = parameters(network), sum(parameter.numel() for _, parameter in network.head_parameters())
        _, low_rank = LoRAAdapter(rank=8).size(network)
        MultiWayAdapter().inject(network)
        counts = (head, low_rank, parameters(network) - whole)
        lines.append(f"  {name:<33}{whole:>15,}" + "".join(f"{count:>13,}" for count in counts))
    return lines


def captioning() -> list[str]:
    """I-Tuning on the hidden states of CLIP-ViT B/16 and ClipCap on the vectors of B/32, with the three sizes of GPT-2."""

    def counted(name: str, size: str, adapter: ITuning | ClipCap) -> Count:
        with torch.device("meta"):
            language = LanguageModel(config={"model_type": "gpt2", **GPT2[size]})
            i_tuning = isinstance(adapter, ITuning)
            tower: ImageTower = (
                HFImageTower(config={"model_type": "clip_vision_model", **CLIP_B, "patch_size": 16})
                if i_tuning
                else ProjectedCLIPTower(config={**CLIP_B, "patch_size": 32})
            )
            network = Captioner(tower, language, visual="tokens" if i_tuning else "pooled")
        adapter.inject(network)
        return Count(f"{name}, {size}", set_tuning(network, adapter, "adapter"), exported=True)

    rows = [counted("i-tuning", size, ITuning()) for size in GPT2]
    rows += [counted("i-tuning, 18 off", "large", ITuning(drop_first=18))]
    rows += [counted("clipcap", size, ClipCap()) for size in GPT2]
    rows += [
        counted("clipcap, mlp", "base", ClipCap("mlp")),
        counted("+ GPT-2", "base", ClipCap("mlp", tune_language_model=True)),
    ]
    return ["Captioning, GPT-2 with CLIP-ViT (I-Tuning: B/16; ClipCap, prefix 10: B/32)", HEADER, *map(str, rows)]


def report() -> list[str]:
    """The lines of `crosslight params` without arguments."""
    lines = []
    networks: dict[str, RetrievalNetwork] = {f"BEiT-3 {size} px": build(size) for size in SIZES}
    for name, network in {**networks, f"CLIP {ADAPTED_CLIP}": dual_encoder(ADAPTED_CLIP)}.items():
        heads = sum(parameter.numel() for _, parameter in network.head_parameters())
        lines += [f"{name}: {parameters(network):,} parameters, {heads:,} of them heads", HEADER]
        lines += [*map(str, table(network)), ""]
    lines += [
        "% is of the network without its adapter, as in the paper's Table 1; MB is the adapter export in fp32. Heads count as",
        "brought by the checkpoint and stay frozen (train_heads: new); full leaves out the mask token: retrieval never uses it.",
        "",
        printed_large(),
        "",
        *uniter(),
        "",
        *pair_scorers(),
        "",
        *dual_encoders(),
        "",
        *captioning(),
    ]
    return lines


# ------------------------------------------------------------------------------------------- of a configuration


def configured(arguments: list[str]) -> list[str]:
    """The lines of `crosslight params -c FILE ...`: that configuration, its weights unread.

    Raises:
        InputError: The configuration does not parse, or names a class that cannot be built without its files.
    """
    from experiments.training.configs import find_configs
    from experiments.training.lightning_cli import ParsedCLI
    from experiments.training.quiet import quiet
    from lightning_modules.loading import build as build_module

    quiet()
    # any data will do, but the parser wants some; files of the user win over it
    config = ParsedCLI(["run", *find_configs(["-c", "configs/data/world.yaml", *arguments])]).plain
    unread = list(_without_weights(config["model"], "model"))
    with torch.device("meta"):
        model: Any = build_module(config["model"])
    network, adapter = model.network, model.adapter
    counts = model.counts
    brought = model.tuning == "adapter" and model.train_heads == "new" and bool(unread)
    if brought:
        network.loaded_heads = head_names(network)
        counts = set_tuning(network, adapter, model.tuning, model.train_heads)
    lines = [HEADER, str(Count(config["name"], counts, exported=model.tuning != "full"))]
    if unread:
        lines.append(f"not read: {', '.join(unread)}")
    if brought:
        more = counts.trainable + counts.heads
        lines.append(f"The heads count as brought by these weights. If they are not: {more:,} tunable.")
    return lines


def _without_weights(section: Any, name: str) -> Iterable[str]:
    """Empty every option that names weights, in place; yields those that named some."""
    empty: dict[str, Any] = {"weights": None, "init_from": None, "pretrained": False}
    for key, value in section.items() if isinstance(section, dict) else ():
        if key in empty and value and value != RANDOM:
            section[key] = empty[key]
            yield f"{name}.{key}={value}"
        else:
            yield from _without_weights(value, f"{name}.{key}")
