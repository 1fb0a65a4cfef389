"""MultiWay-Adapter (Long et al., arXiv 2309.01516v3): a bottleneck beside every FFN and one on top of it.

New Knowledge Extractor (KE), Eq. 1 and 2, with x' the residual stream after attention:

    x = x' + FFN(LN(x')) + alpha * KE(x')           KE(x') = Up(ReLU(Down([LN] x')))

Alignment Enhancer (AE), atop the whole FFN residual:

    y = x + AE(x)

Paper and released code disagree on nearly everything else, so there are three readings by name (`READINGS`), and every value
can be set on its own. `KnowledgeExtractor` and `AlignmentEnhancer` are plain modules that know no host: BEiT-3 calls them
itself.

Injection into other people's transformers copies no forward and changes no key. Each block gets a submodule `multiway` and
two hooks. Pre-norm blocks (timm ViT, CLIP, ViT, DINOv2): the input of the second norm is x', and KE and AE are added to the
block's output. Post-norm blocks (BERT, RoBERTa) compute LN(x' + FFN(x')), with no stream that stays un-normed; there x' is the
FFN's input, and the sum is completed just before that LN: LN(x + AE(x)) with x = x' + FFN(x') + alpha * KE(x'). Inside rather
than behind the LN, so that the next frozen layer still gets the normalized input it was trained on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from datamodules.errors import InputError
from lightning_modules.adapters.adapter import Adapter
from lightning_modules.adapters.line import times
from lightning_modules.adapters.towers import Towers, chosen_towers, sides_of
from lightning_modules.networks import beit3

Reading = Literal["printed", "released", "text"]
Form = Literal["ffn", "bottleneck"]
NormPlace = Literal["none", "in", "out"]
Initialization = Literal["identity", "released"]

NAME = "multiway"  # the submodule that each adapted block gets; its keys are the adapter's keys


# ---------------------------------------------------------------------------------------------------------------- modules


class KnowledgeExtractor(nn.Module):
    """[..., width] -> [..., width]: alpha * Up(dropout(ReLU(Down(x)))), to be added to the FFN branch (AdaptFormer's adapter).

    Args:
        width: Width of the residual stream.
        mid: Width of the bottleneck.
        scale: alpha; "learnable" = one parameter, 1 at the start.
        layer_norm: Where a LayerNorm is: "in" before Down (Eq. 1), "out" after the scaling, or "none" (the code's default).
        dropout: Between ReLU and Up.
    """

    def __init__(
        self,
        width: int,
        mid: int,
        scale: float | Literal["learnable"] = 0.6,
        layer_norm: NormPlace = "none",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.place = layer_norm
        self.norm = nn.LayerNorm(width) if layer_norm != "none" else None
        self.down = nn.Linear(width, mid)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(mid, width)
        self.scale: Parameter | float = Parameter(torch.ones(1)) if scale == "learnable" else float(scale)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LoRA-like start in every reading: Up is zero, so the output is exactly zero."""
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is not None and self.place == "in":
            x = self.norm(x)
        hidden = self.dropout(torch.relu(self.down(x)))
        # alpha on Up instead of on its output: the same product, without another pass over [..., width]
        x = nn.functional.linear(hidden, self.up.weight * self.scale, self.up.bias * self.scale)
        return self.norm(x) if self.norm is not None and self.place == "out" else x


class AlignmentEnhancer(nn.Module):
    """[..., width] -> [..., width]: Fc2(LN(GELU(Fc1(x)))), to be added on top of the FFN residual (BEiT-3's FFN, `enhancemlp`).

    The other form of the AE, which mimics the KE as the text says, is a `KnowledgeExtractor` of another size.

    Args:
        width: Width of the residual stream.
        mid: Width in the middle: 128 to reproduce the printed counts, the host's FFN width in the released code.
        sub_norm: LayerNorm between GELU and Fc2 (BEiT-3's sub-LN).
        init: "identity" = Fc2 zero; "released" = both weights from N(0, .02) cut at one sigma, not the identity at the start.
    """

    def __init__(
        self, width: int, mid: int, sub_norm: bool = True, init: Initialization = "identity", scale: float = 1.0
    ) -> None:
        super().__init__()
        self.scale = scale
        self.fc1 = nn.Linear(width, mid)
        self.sub_norm = nn.LayerNorm(mid) if sub_norm else None
        self.fc2 = nn.Linear(mid, width)
        self.init = init
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.init == "released":
            for layer in (self.fc1, self.fc2):
                nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.02, b=0.02)
        else:
            nn.init.kaiming_uniform_(self.fc1.weight, a=math.sqrt(5))
            nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc1.bias)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.gelu(self.fc1(x))
        x = self.fc2(x if self.sub_norm is None else self.sub_norm(x))
        return x if self.scale == 1.0 else x * self.scale


# --------------------------------------------------------------------------------------------------------------- readings


@dataclass(frozen=True)
class MultiWayValues:
    """Every value of one reading; `alignment_enhancer_mid` "ffn" = the width of the host's FFN, `*_mid` 0 = that part is off."""

    knowledge_extractor_mid: int
    knowledge_extractor_norm: NormPlace
    alignment_enhancer_mid: int | Literal["ffn"]
    alignment_enhancer_form: Form
    alignment_enhancer_norm: NormPlace
    sub_norm: bool
    scale: float | Literal["learnable"]
    dropout: float
    init: Initialization
    alignment_enhancer_shared: bool  # in BEiT-3: one AE a layer for both modalities, instead of one each
    alignment_enhancer_scale: float = 1.0

    @property
    def identity_at_start(self) -> bool:
        """KE and a bottleneck AE start at zero always; the FFN-shaped AE only with init "identity"."""
        return self.init == "identity" or self.alignment_enhancer_form == "bottleneck" or self.alignment_enhancer_mid == 0

    def knowledge_extractor(self, width: int) -> KnowledgeExtractor | None:
        """A KE for a host of this width, None if it is off."""
        if self.knowledge_extractor_mid == 0:
            return None
        return KnowledgeExtractor(width, self.knowledge_extractor_mid, self.scale, self.knowledge_extractor_norm, self.dropout)

    def alignment_enhancer(self, width: int, ffn_width: int) -> AlignmentEnhancer | KnowledgeExtractor | None:
        """An AE for a host of this width and FFN width, None if it is off."""
        mid = ffn_width if self.alignment_enhancer_mid == "ffn" else self.alignment_enhancer_mid
        if mid == 0:
            return None
        if self.alignment_enhancer_form == "bottleneck":
            return KnowledgeExtractor(width, mid, self.scale, self.alignment_enhancer_norm, self.dropout)
        return AlignmentEnhancer(width, mid, self.sub_norm, self.init, self.alignment_enhancer_scale)


READINGS: dict[str, MultiWayValues] = {
    # Gives the printed 7.13 M of Table 1 on BEiT-3 base: the only reading that was found to (the paper's alpha is not printed;
    # 0.6 is the README's command).
    "printed": MultiWayValues(64, "none", 128, "ffn", "none", True, 0.6, 0.1, "identity", False),
    # adapter.py and multiway_encoder.py at 8999b5a: AE as wide as the FFN and not the identity. In BEiT-3 one AE serves both
    # modalities; the two towers of a dual encoder are different networks, so there each has its own.
    "released": MultiWayValues(64, "none", "ffn", "ffn", "none", True, 0.6, 0.1, "released", True),
    # Section 3.1 to the letter: LN in Eq. 1, alpha learned, and an AE that "mimics the architecture" of the KE.
    "text": MultiWayValues(64, "in", 128, "bottleneck", "in", False, "learnable", 0.1, "identity", True),
}


# -------------------------------------------------------------------------------------------------------------- injection


@dataclass(frozen=True)
class Site:
    """Where things are in a block class. Paths are relative to the block; `norm` is the norm around the FFN."""

    norm: str
    ffn: tuple[str, ...]  # first linear layer of the FFN, by the names it may have
    post: str | None = None  # post-norm blocks: the submodule that takes (FFN hidden, x') and holds `norm`


_TIMM = Site("norm2", ("mlp.fc1", "mlp.fc1_g", "mlp.w1"))
_HF = ("mlp.fc1", "mlp.weights_in", "mlp.up_proj", "intermediate.dense")
_BERT = Site("output.LayerNorm", ("intermediate.dense",), post="output")
_LLAMA = Site("post_attention_layernorm", ("mlp.up_proj",))

# By class name and the module it is defined in (a class called Block means nothing by itself). Only blocks whose forward was
# read: pre-norm ones end with x' + FFN(norm(x')), post-norm ones with LayerNorm(x' + FFN(x')).
SITES: dict[tuple[str, str], Site] = {
    ("timm.models.vision_transformer", "Block"): _TIMM,
    ("timm.models.beit", "Block"): _TIMM,
    ("timm.models.eva", "EvaBlock"): _TIMM,
    ("transformers.models.clip.modeling_clip", "CLIPEncoderLayer"): Site("layer_norm2", _HF),
    ("transformers.models.siglip.modeling_siglip", "SiglipEncoderLayer"): Site("layer_norm2", _HF),
    ("transformers.models.siglip2.modeling_siglip2", "Siglip2EncoderLayer"): Site("layer_norm2", _HF),
    ("transformers.models.metaclip_2.modeling_metaclip_2", "MetaClip2EncoderLayer"): Site("layer_norm2", _HF),
    ("transformers.models.altclip.modeling_altclip", "AltCLIPEncoderLayer"): Site("layer_norm2", _HF),
    ("transformers.models.altclip.modeling_altclip", "AltRobertaLayer"): _BERT,
    ("transformers.models.chinese_clip.modeling_chinese_clip", "ChineseCLIPVisionLayer"): Site("layer_norm2", _HF),
    ("transformers.models.chinese_clip.modeling_chinese_clip", "ChineseCLIPTextLayer"): _BERT,
    ("transformers.models.align.modeling_align", "AlignTextLayer"): _BERT,
    ("transformers.models.blip.modeling_blip", "BlipEncoderLayer"): Site("layer_norm2", _HF),
    ("transformers.models.blip.modeling_blip_text", "BlipTextLayer"): _BERT,
    ("transformers.models.aimv2.modeling_aimv2", "Aimv2EncoderLayer"): Site("rms_norm2", ("ffn.up_proj",)),
    ("transformers.models.dinov2.modeling_dinov2", "Dinov2Layer"): Site("norm2", _HF),
    ("transformers.models.dinov2_with_registers.modeling_dinov2_with_registers", "Dinov2WithRegistersLayer"): Site("norm2", _HF),
    ("transformers.models.vit.modeling_vit", "ViTLayer"): Site("layernorm_after", _HF),
    ("transformers.models.vilt.modeling_vilt", "ViltLayer"): Site("layernorm_after", _HF),
    ("transformers.models.bert.modeling_bert", "BertLayer"): _BERT,
    ("transformers.models.roberta.modeling_roberta", "RobertaLayer"): _BERT,
    ("transformers.models.xlm_roberta.modeling_xlm_roberta", "XLMRobertaLayer"): _BERT,
    ("transformers.models.visual_bert.modeling_visual_bert", "VisualBertLayer"): _BERT,
    ("transformers.models.bridgetower.modeling_bridgetower", "BridgeTowerResidualAttention"): Site("ln_2", ("mlp.c_fc",)),
    ("transformers.models.bridgetower.modeling_bridgetower", "BridgeTowerTextLayer"): _BERT,
    ("transformers.models.bridgetower.modeling_bridgetower", "BridgeTowerBertCrossLayer"): _BERT,
    ("transformers.models.gpt2.modeling_gpt2", "GPT2Block"): Site("ln_2", ("mlp.c_fc",)),
    ("open_clip.transformer", "ResidualAttentionBlock"): Site("ln_2", ("mlp.c_fc",)),
    ("open_clip.transformer", "CustomResidualAttentionBlock"): Site("ln_2", ("mlp.c_fc",)),
    ("transformers.models.llama.modeling_llama", "LlamaDecoderLayer"): _LLAMA,
    ("transformers.models.mistral.modeling_mistral", "MistralDecoderLayer"): _LLAMA,
    ("transformers.models.qwen2.modeling_qwen2", "Qwen2DecoderLayer"): _LLAMA,
    ("transformers.models.qwen3.modeling_qwen3", "Qwen3DecoderLayer"): _LLAMA,
}


def site_of(module: nn.Module) -> Site | None:
    """Where things are in a module, if it is a known transformer block."""
    for base in type(module).__mro__:  # a checkpointed block is a subclass of the library's
        site = SITES.get((base.__module__, base.__name__))
        if site is not None:
            return site
    return None


class MultiWay(nn.Module):
    """KE and AE of one block, and the hooks that call them. Hooks are bound methods, so deepcopy takes them along."""

    def __init__(self, knowledge_extractor: nn.Module | None, alignment_enhancer: nn.Module | None) -> None:
        super().__init__()
        self.knowledge_extractor = knowledge_extractor
        self.alignment_enhancer = alignment_enhancer
        self._residual: Tensor | None = None  # x', from the moment it is seen until it is used in the same block call

    def attach(self, block: nn.Module, site: Site) -> None:
        """Become `block.multiway` and hook into its call."""
        block.add_module(NAME, self)
        if site.post is None:
            if self.knowledge_extractor is not None:
                block.get_submodule(site.norm).register_forward_pre_hook(self._see_norm_input)
            block.register_forward_hook(self._after_block)
        else:
            if self.knowledge_extractor is not None:
                block.get_submodule(site.post).register_forward_pre_hook(self._see_ffn_input)
            block.get_submodule(site.norm).register_forward_pre_hook(self._before_last_norm)

    def add(self, x: Tensor) -> Tensor:
        """`x` = x' + FFN(...) -> x + alpha * KE(x') -> + AE of that."""
        residual, self._residual = self._residual, None
        if self.knowledge_extractor is not None:
            x = x + self.knowledge_extractor(residual)
        return x if self.alignment_enhancer is None else x + self.alignment_enhancer(x)

    def _see_norm_input(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        self._residual = args[0]

    def _see_ffn_input(self, output: nn.Module, args: tuple[Any, ...]) -> None:
        self._residual = args[1]

    def _after_block(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (self.add(output[0]), *output[1:]) if isinstance(output, tuple) else self.add(output)

    def _before_last_norm(self, norm: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.add(args[0]), *args[1:])


class LayerMultiWay(nn.Module):
    """KE and AE of one BEiT-3 layer, which calls them itself: a KE a modality, and an AE a modality or one for both.

    Fused input is adapted like any other; the released code leaves out the KE there (an exception that it swallows).
    """

    def __init__(
        self, knowledge_extractor: Mapping[str, nn.Module], alignment_enhancer: Mapping[str, nn.Module], sides: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.sides = sides
        self.knowledge_extractor = nn.ModuleDict(knowledge_extractor)
        self.alignment_enhancer = nn.ModuleDict(alignment_enhancer)

    def forward(self, side: str, residual: Tensor, x: Tensor, drop_path: nn.Module) -> Tensor:
        """`x` = x' + FFN(...) of one modality's tokens, `residual` = x'. The AE is dropped like the FFN, the KE never is."""
        if side not in self.sides:
            return x
        if side in self.knowledge_extractor:
            x = x + self.knowledge_extractor[side](residual)
        if self.alignment_enhancer:
            align = self.alignment_enhancer["shared" if "shared" in self.alignment_enhancer else side]
            x = drop_path(x, lambda rows: align(x if rows is None else x[rows]))
        return x


class MultiWayAdapter(Adapter):
    """MultiWay-Adapter for BEiT-3 layers and blocks of timm ViT, CLIP, SigLIP, ViT, DINOv2, ViLT, BERT, RoBERTa, GPT-2, Llama.

    Among the pair scorers, for blocks of VisualBERT, BLIP and BridgeTower.

    Args:
        reading: "printed" reproduces the printed parameter count (KE 64, AE 128 with sub-LN, starts as the identity);
            "released" is the published code (AE as wide as the FFN, not the identity at the start); "text" is Eq. 1-2 to the
            letter.
        towers: Which towers are adapted: of a dual encoder, in BEiT-3 whose tokens; "text" is the language model of a captioner.
            Null = all that take part in the task, and each of them must have blocks that it knows.
        knowledge_extractor: New Knowledge Extractor (KE) on or off.
        alignment_enhancer: Alignment Enhancer (AE) on or off.
        knowledge_extractor_mid: Bottleneck width of the KE; 0 = no KE; None = as the reading. Without KE and AE there is no
            adapter (the origin of Figure 2): the network stays as it is.
        alignment_enhancer_mid: Middle width of the AE; 0 = no AE; "ffn" = the host's FFN width; None = as the reading.
        alignment_enhancer_form: "ffn" (GELU, sub-LN) or "bottleneck" (like the KE); None = as the reading.
        sub_norm: LayerNorm inside an AE of form "ffn"; None = as the reading.
        scale: alpha, a number or "learnable"; None = as the reading.
        alignment_enhancer_scale: Factor on an AE of form "ffn". Paper and code have none (1); behind its sub-LN the AE's output
            does not shrink with its input, so on towers not made for it a small factor lets it learn at the KE's rate.
        layer_norm: LayerNorm of the KE and of a bottleneck AE: "none", "in" or "out"; None = as the reading.
        dropout: Dropout in the KE and in a bottleneck AE; None = as the reading.
        init: "identity" (starts without effect) or "released" (the code's random AE); None = as the reading.
        alignment_enhancer_shared: In BEiT-3: one AE a layer for both modalities instead of one each; None = as the reading. The
            towers of a dual encoder are different networks, so there each always has its own.

    Raises:
        InputError: A value is out of range, or both parts are switched off.
    """

    def __init__(
        self,
        reading: Reading = "printed",
        towers: Towers | None = None,
        knowledge_extractor: bool = True,
        alignment_enhancer: bool = True,
        knowledge_extractor_mid: int | None = None,
        alignment_enhancer_mid: int | Literal["ffn"] | None = None,
        alignment_enhancer_form: Form | None = None,
        sub_norm: bool | None = None,
        scale: float | Literal["learnable"] | None = None,
        layer_norm: NormPlace | None = None,
        dropout: float | None = None,
        init: Initialization | None = None,
        alignment_enhancer_scale: float = 1.0,
        alignment_enhancer_shared: bool | None = None,
    ) -> None:
        self._init_args: dict[str, Any] = {
            "reading": reading,
            "towers": towers,
            "knowledge_extractor": knowledge_extractor,
            "alignment_enhancer": alignment_enhancer,
            "knowledge_extractor_mid": knowledge_extractor_mid,
            "alignment_enhancer_mid": alignment_enhancer_mid,
            "alignment_enhancer_form": alignment_enhancer_form,
            "sub_norm": sub_norm,
            "scale": scale,
            "layer_norm": layer_norm,
            "dropout": dropout,
            "init": init,
            "alignment_enhancer_scale": alignment_enhancer_scale,
            "alignment_enhancer_shared": alignment_enhancer_shared,
        }
        if reading not in READINGS:
            raise InputError(f"multiway adapter: unknown reading {reading!r}; choose {', '.join(READINGS)}")
        if not knowledge_extractor and not alignment_enhancer:  # the switches contradict the adapter; width 0 starts a sweep
            raise InputError(
                "multiway adapter: both the Knowledge Extractor and the Alignment Enhancer are off; switch one on "
                "(knowledge_extractor, alignment_enhancer), or use tuning mode head or frozen without an adapter"
            )
        given: dict[str, Any] = {
            "knowledge_extractor_mid": knowledge_extractor_mid if knowledge_extractor else 0,
            "knowledge_extractor_norm": layer_norm,
            "alignment_enhancer_mid": alignment_enhancer_mid if alignment_enhancer else 0,
            "alignment_enhancer_form": alignment_enhancer_form,
            "alignment_enhancer_norm": layer_norm,
            "sub_norm": sub_norm,
            "scale": scale,
            "dropout": dropout,
            "init": init,
            "alignment_enhancer_shared": alignment_enhancer_shared,
            "alignment_enhancer_scale": alignment_enhancer_scale,
        }
        self.towers = towers
        self.values = replace(READINGS[reading], **{name: value for name, value in given.items() if value is not None})
        mids = [self.values.knowledge_extractor_mid, self.values.alignment_enhancer_mid]
        if 0 in (self.values.scale, alignment_enhancer_scale):
            raise InputError("multiway adapter: at scale 0 it has no effect; for no adapter set the mid dimensions to 0")
        if any(mid != "ffn" and mid < 0 for mid in mids) or not 0 <= self.values.dropout < 1:
            raise InputError(f"multiway adapter: widths must be 0 or more and dropout in [0, 1), got {asdict(self.values)}")

    @property
    def identity_at_start(self) -> bool:
        """Whether the network computes exactly the same right after `inject`."""
        return self.values.identity_at_start

    @property
    def off(self) -> bool:
        """Whether neither a KE nor an AE is left."""
        return self.values.knowledge_extractor_mid == 0 and self.values.alignment_enhancer_mid == 0

    def owns(self, parameter_name: str) -> bool:
        """Whether the name of a parameter, of a state-dict entry or of a module is this adapter's."""
        return NAME in parameter_name.split(".")

    def scaled(self, start: Mapping[str, Tensor], trained: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
        """What KE and AE add, times alpha: on the last layer of each, which is a norm where one follows the bottleneck. At 0
        there is neither, also where the AE does not start as the identity ("released")."""
        return times(trained, alpha, self._is_last)

    def _is_last(self, name: str) -> bool:
        """Whether a tensor is of the last layer of a KE or an AE."""
        layer = name.split(".")[-2]
        extracts = "knowledge_extractor" in name.split(".")
        place = self.values.knowledge_extractor_norm if extracts else self.values.alignment_enhancer_norm
        if not extracts and self.values.alignment_enhancer_form == "ffn":
            return layer == "fc2"
        return layer == ("norm" if place == "out" else "up")

    def describe(self) -> dict[str, Any]:
        """Constructor arguments to build it again, and the values that the reading resolved to."""
        return {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "init_args": dict(self._init_args),
            "values": asdict(self.values),
            "identity_at_start": self.identity_at_start,
        }

    def inject(self, network: nn.Module) -> None:
        """Give every known block of the chosen towers its KE and AE, on the block's device, in fp32; nothing if it is `off`.

        BEiT-3's layers hold both modalities: there `towers` chooses whose tokens are adapted. A network without towers is adapted
        as a whole.

        Raises:
            InputError: A chosen tower takes no part in the task, has no known block (the message names the module types it has),
                or has adapters already.
        """
        if self.off:
            return
        layers = [module for module in network.modules() if isinstance(module, beit3.Layer)]
        if layers:
            self._put_into_beit3(layers, sides_of(self.towers))
            return
        towers = chosen_towers(network, self.towers, "multiway adapter")
        parts = {f"{side} tower" if side else type(network).__name__: part for side, part in towers.items()}
        several = len(parts) > 1
        found = {where: self._find(part, where, several) for where, part in parts.items()}  # all checked before anything changes
        for blocks in found.values():
            for block, site in blocks:
                self._put_into(block, site)

    def _put_into_beit3(self, layers: list[beit3.Layer], sides: tuple[str, ...]) -> None:
        if any(layer.multiway is not None for layer in layers):
            raise InputError("multiway adapter: this BEiT-3 has MultiWay-Adapters already; inject only once")
        for layer in layers:
            width, ffn_width = layer.image.fc1.in_features, layer.image.fc1.out_features
            with torch.device(layer.image.ffn_norm.weight.device):
                knowledge_extractor = {
                    side: module for side in sides if (module := self.values.knowledge_extractor(width)) is not None
                }
                places = ("shared",) if self.values.alignment_enhancer_shared else sides
                alignment_enhancer = {
                    place: ae for place in places if (ae := self.values.alignment_enhancer(width, ffn_width)) is not None
                }
                layer.multiway = LayerMultiWay(knowledge_extractor, alignment_enhancer, sides)
            layer.multiway.train(layer.training)

    def _find(self, part: nn.Module, where: str, several: bool) -> list[tuple[nn.Module, Site]]:
        if any(self.owns(name) for name, _ in part.named_modules()):
            raise InputError(f"multiway adapter: the {where} has MultiWay-Adapters already; inject only once")
        blocks = [(module, site) for module in part.modules() if (site := site_of(module)) is not None]
        if not blocks:
            containers = sorted({type(module).__name__ for module in part.modules() if next(module.children(), None) is not None})
            known = ", ".join(sorted({name for _, name in SITES}))
            other = {"image tower": "text", "text tower": "image"}.get(where)
            advice = f" set adapter.towers to {other}, or" if other and several else ""
            raise InputError(
                f"multiway adapter: the {where} has no block it knows ({known}); it is made of {', '.join(containers)};"
                f"{advice} choose a tower with such blocks"
            )
        return blocks

    def _put_into(self, block: nn.Module, site: Site) -> None:
        norm = block.get_submodule(site.norm)
        weight = next((parameter for parameter in norm.parameters()), None)
        if weight is None:
            raise InputError(f"multiway adapter: {site.norm} of {type(block).__name__} has no weight to read the width from")
        width = weight.shape[0]
        modules = dict(block.named_modules())
        linear = next((modules[path] for path in site.ffn if path in modules), None)
        ffn_width = linear.out_features if isinstance(linear, nn.Linear) else int(getattr(linear, "nf", 4 * width))  # GPT-2's nf
        with torch.device(weight.device):
            multiway = MultiWay(self.values.knowledge_extractor(width), self.values.alignment_enhancer(width, ffn_width))
        multiway.train(block.training)
        multiway.attach(block, site)
