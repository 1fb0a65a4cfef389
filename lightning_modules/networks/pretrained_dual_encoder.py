"""A dual encoder of Hugging Face as it comes: CLIP, SigLIP, SigLIP 2, MetaCLIP 2, ALIGN, AltCLIP, Chinese-CLIP, and any other
model of the library with `get_image_features` and `get_text_features`.

Nothing of a model is copied here: vectors are what its own two methods give, made unit vectors. So its projections, pooling and
heads are its own, and zero-shot retrieval is that of whoever trained it.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from datamodules.errors import InputError, some
from datamodules.files.hub import without_waiting
from datamodules.inputs import ImageInput, Inputs, TextInput
from datamodules.records import ImageBatch, TextBatch
from lightning_modules.networks.checkpointing import checkpoint_blocks
from lightning_modules.networks.image_processor import image_input, read_processor
from lightning_modules.networks.library_model import build_model, read_settings, require_one
from lightning_modules.networks.network import RetrievalNetwork, pixels_of
from lightning_modules.networks.quiet_loading import is_path, quiet_loading
from lightning_modules.networks.start import fresh_names, refuse_until_read, to_read
from lightning_modules.networks.towers.base import find_blocks, layer_of, stem_of
from lightning_modules.networks.towers.hugging_face import expanded

_TOWERS = {"image": ("vision_model", "image_model"), "text": ("text_model",)}  # how the library's models call them
_NO_LIMIT = 1_000_000  # tokens: the library writes 1e30 where there is none
_SCALARS = ("logit_scale", "logit_bias", "temperature")


class HFDualEncoder(RetrievalNetwork):
    """A whole CLIP-like model of Hugging Face: both towers, projections, temperature, bias, tokenizer and image transform.

    Args:
        name: Hub name or local folder, weights included. Its preprocessor_config.json says how images are made, or else what the
            library has for this kind of model.
        config: Instead of `name`: a configuration, for random weights, e.g. {model_type: clip, projection_dim: 512,
            text_config: {...}, vision_config: {...}}. Images are made as the library does for this kind of model, at its size.
        weights: With `config`: a safetensors or torch file with exactly the library's keys; random = random weights on purpose.
            None = random, to be trained or brought by init_from.
        tokenizer: Hugging Face name or local folder; None = `name`.
        max_tokens: Longest caption in tokens, special ones included. None = what the tokenizer's own configuration says, and at
            most as many as the model has positions.
        padding: "mask" = captions are padded to the longest of their batch and the padding is masked; "read" = they are padded
            to max_tokens and the padding is read like a text. None = "read" where the model pools its last position (SigLIP and
            SigLIP 2, which were trained so), else "mask".
        image_size: Side of the square input in pixels; None = the model's own. Positions are resampled, and the rest of the
            transform stays. SigLIP 2 of variable resolution (NaFlex) needs it: data modules make squares, so it sees squares.
        init_temperature: Start of the temperature, instead of what the weights bring or the objective says.
        checkpoint_activations: Recompute the towers' activations in the backward pass: less memory, about a third more compute.
        attention: "sdpa" (fused) or "eager" (gives attention maps, slower). None = fused where the library has it.

    Raises:
        InputError: Nothing to build, a model without the two methods, weights that do not fit, or an image processor that data
            modules cannot follow.
    """

    logit_bias: Parameter | None

    def __init__(
        self,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        weights: str | None = None,
        tokenizer: str | None = None,
        max_tokens: int | None = None,
        padding: Literal["mask", "read"] | None = None,
        image_size: int | None = None,
        init_temperature: float | None = None,
        checkpoint_activations: bool = False,
        attention: Literal["sdpa", "eager"] | None = None,
    ) -> None:
        super().__init__()
        where = f"dual encoder {name or (config or {}).get('model_type', '')}".rstrip()
        require_one(where, name, config, weights)
        if init_temperature is not None and init_temperature <= 0:
            raise InputError(f"{where}: init_temperature is {init_temperature}; it must be positive")
        if (reads := tokenizer or expanded(name)) is None:
            raise InputError(f"{where}: tokenizer is missing (a Hugging Face name or folder); it is needed with config")
        settings = read_settings(where, name, config)
        self.model: Any = build_model(where, settings, name, attention)
        self._tower_paths = {side: _tower_path(where, self.model, side) for side in _TOWERS}
        self.loaded_from = name
        self.init_temperature = init_temperature
        self._take_scalars(where, init_temperature)
        spec = _image_input(where, name, settings, image_size)
        self.inputs = Inputs(image=spec, text=self._text_input(where, settings, reads, max_tokens, padding))
        self._masked = self.inputs.text is not None and self.inputs.text.padding == "longest"
        self._set_up_images(where, settings, spec, image_size)
        self._names = frozenset(f"model.{name}" for name, _ in self.model.named_parameters())
        self._blocks = {side: find_blocks(tower) for side, tower in self.towers().items()}
        self._stems = {
            side: stem_of([name for name, _ in tower.named_parameters()], self._blocks[side])
            for side, tower in self.towers().items()
        }
        self._uses = self._used_parameters()
        self.weights, self.fresh = to_read(weights), fresh_names(self, weights, brought=name is not None)
        self.loaded_heads = frozenset() if name is None else frozenset(head for head, _ in self.head_parameters())
        refuse_until_read(self)
        if checkpoint_activations:
            self._checkpoint(where)

    # ------------------------------------------------------------------------------------------------------------ set-up

    def _take_scalars(self, where: str, init_temperature: float | None) -> None:
        """The model's temperature and bias, as parameters of no dimension of this network."""
        found = {name: value for name in _SCALARS if (value := getattr(self.model, name, None)) is not None}
        if "logit_scale" not in found and "temperature" not in found:
            raise InputError(f"{where}: {type(self.model).__name__} has neither logit_scale nor temperature, so it is no CLIP")
        own = library_scalars({name: value.detach() for name, value in found.items()})
        for name in found:
            delattr(self.model, name)
        self.logit_scale = Parameter(own["logit_scale"])
        if init_temperature is not None:
            with torch.no_grad():
                self.logit_scale.fill_(-math.log(init_temperature))
        self.register_parameter("logit_bias", Parameter(own["logit_bias"]) if "logit_bias" in own else None)

    def _text_input(
        self, where: str, settings: Any, tokenizer: str, max_tokens: int | None, padding: Literal["mask", "read"] | None
    ) -> TextInput:
        text = settings.text_config
        positions = getattr(text, "max_position_embeddings", None)
        parts = self.towers()["text"].modules()
        if positions is not None and any(hasattr(part, "create_position_ids_from_input_ids") for part in parts):
            positions -= int(text.pad_token_id) + 1  # RoBERTa's position table starts behind the padding index
        if max_tokens is None:
            max_tokens = min(_longest(tokenizer), positions or _longest(tokenizer))
        if positions is not None and max_tokens > positions:
            raise InputError(f"{where}: max_tokens {max_tokens} exceeds its {positions} positions; set it to {positions} or less")
        if max_tokens > _NO_LIMIT // 2:
            raise InputError(f"{where}: neither its tokenizer nor its positions limit a caption; set max_tokens")
        reads = padding == "read" if padding is not None else settings.model_type.startswith("siglip")
        return TextInput(
            tokenizer=str(tokenizer),
            max_tokens=max_tokens,
            vocabulary=getattr(text, "vocab_size", None),
            padding="max_length" if reads else "longest",
        )

    def _set_up_images(self, where: str, settings: Any, spec: ImageInput, asked: int | None) -> None:
        """How pixels go in: as they are, with resampled positions, or in patches."""
        accepts, vision = inspect.signature(self.model.get_image_features).parameters, _vision(settings)
        native, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
        self._patch = int(patch) if "spatial_shapes" in accepts and patch else None
        if patch and spec.size % int(patch) and (self._patch is not None or spec.size != native):
            # of its own size a model may leave a rest unread (SigLIP So400m: 384 px in patches of 14)
            raise InputError(f"{where}: image_size {spec.size} is not a multiple of the patch size {patch}")
        other = bool(patch) and self._patch is None and native not in (None, spec.size)  # a CNN takes any size
        self._resample = other and "interpolate_pos_encoding" in accepts
        if other and not (asked and self._resample):
            raise InputError(
                f"{where}: it takes {native} px, and its image processor makes {spec.size}; set image_size to {native}"
            )

    def _used_parameters(self) -> dict[str, frozenset[str]]:
        """Which parameters each encoder's vectors depend on, found in autograd's graph of one image and one text: a pooler that
        is not asked, or cross-attention, would train and never get a gradient. Meta tensors compute nothing."""
        shapes = {id(tensor): _meta(tensor) for tensor in [*self.model.parameters(), *self.model.buffers()]}
        try:
            return self._reached(copy.deepcopy(self.model, shapes), "meta")
        except RuntimeError:  # a model that looks at values as it goes: then in earnest
            if self.logit_scale.is_meta:
                raise
            return self._reached(copy.deepcopy(self.model), "cpu")

    def _reached(self, model: Any, device: str) -> dict[str, frozenset[str]]:
        spec, text = self.inputs.image, self.inputs.text
        assert spec is not None
        assert text is not None
        reached = {}
        model.eval()  # batch norm in training wants more than one row
        with torch.enable_grad(), torch.random.fork_rng(devices=[]), quiet_loading():
            for side in _TOWERS:
                if side == "image":
                    features = self._image_features(model, torch.zeros(1, 3, spec.size, spec.size, device=device))
                else:
                    tokens_BT = torch.zeros(1, text.max_tokens, dtype=torch.int64, device=device)
                    features = _vectors(model.get_text_features(input_ids=tokens_BT))
                leaves = _leaves(features)
                reached[side] = frozenset(f"model.{name}" for name, p in model.named_parameters() if id(p) in leaves)
        return reached

    def _checkpoint(self, where: str) -> None:
        if lacking := [side for side, path in self._blocks.items() if not path]:
            raise InputError(
                f"{where}: checkpoint_activations finds no list of blocks in its {lacking[0]} tower; set it to false"
            )
        for side, tower in self.towers().items():
            checkpoint_blocks(tower.get_submodule(self._blocks[side]).children())

    # ----------------------------------------------------------------------------------------------------------- vectors

    def encode_images(self, batch: ImageBatch) -> Tensor:
        """Unit vectors [B, D] in fp32 (also under autocast: bf16 would round cosines to two decimals).

        Raises:
            InputError: The batch carries no pixels.
        """
        pixels_B3HW = pixels_of(batch, "the dual encoder needs")
        return F.normalize(self._image_features(self.model, pixels_B3HW).float(), dim=-1)

    def encode_texts(self, batch: TextBatch) -> Tensor:
        """Unit vectors [B, D] in fp32."""
        mask: dict[str, Tensor] = {"attention_mask": batch.mask_BT.long()} if self._masked else {}
        return F.normalize(_vectors(self.model.get_text_features(input_ids=batch.tokens_BT, **mask)).float(), dim=-1)

    def _image_features(self, model: Any, pixels_B3HW: Tensor) -> Tensor:
        if self._patch is not None:
            patches_BNP, rows = patches(pixels_B3HW, self._patch), pixels_B3HW.shape[-1] // self._patch
            grid_B2 = torch.full((len(pixels_B3HW), 2), rows)  # of the CPU: the library reads the numbers
            return _vectors(model.get_image_features(patches_BNP, spatial_shapes=grid_B2))  # no mask: all patches are there
        if self._resample:
            return _vectors(model.get_image_features(pixel_values=pixels_B3HW, interpolate_pos_encoding=True))
        return _vectors(model.get_image_features(pixel_values=pixels_B3HW))

    # ---------------------------------------------------------------------------------------------------------- contract

    def towers(self) -> dict[str, nn.Module]:
        """The library's two encoders, by "image" and "text"."""
        return {side: self.model.get_submodule(path) for side, path in self._tower_paths.items()}

    def head_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Projections, temperature and bias: what is in no tower, and a `head` at a tower's end (SigLIP has its there)."""
        inside = tuple(f"model.{path}." for path in self._tower_paths.values())
        ends = tuple(f"model.{path}.head." for path in self._tower_paths.values())
        unused = self.unused_parameters()
        for name, parameter in self.named_parameters():
            if (not name.startswith(inside) or name.startswith(ends)) and name not in unused:
                yield name, parameter

    def unused_parameters(self) -> frozenset[str]:
        """Parameters that no vector depends on (a pooler, cross-attention): never trainable."""
        used = self._uses["image"] | self._uses["text"]
        idle = self._names - used
        if not idle:
            return idle
        # an adapter inside of an idle module is idle, too; one inside of a module with a parameter that is used is not
        modules = {name.rpartition(".")[0] for name in idle} - {name.rpartition(".")[0] for name in used}
        return idle | {name for name, _ in self.named_parameters() if not modules.isdisjoint(_around(name))}

    def encoder_parameters(self, side: Literal["image", "text"]) -> frozenset[str]:
        """Names of the parameters that only this side's vectors depend on: its tower and its projection."""
        other = "text" if side == "image" else "image"
        only, inside = self._uses[side] - self._uses[other], f"model.{self._tower_paths[side]}."
        return frozenset(name for name, _ in self.named_parameters() if name in only or name.startswith(inside))

    def compile_encoders(self, backend: str = "inductor") -> None:
        """`torch.compile` both towers in place (keys stay as they are). Inject adapters before: hooks are compiled in."""
        for tower in self.towers().values():
            tower.compile(backend=backend)

    @property
    def num_layers(self) -> int:
        """Blocks of the deeper tower."""
        return max(self._depth(side) for side in _TOWERS)

    def _depth(self, side: str) -> int:
        return len(list(self.towers()[side].get_submodule(self._blocks[side]).children())) if self._blocks[side] else 0

    def layer_id(self, name: str) -> int:
        """Layer of a parameter for layer-wise decay, 0 .. num_layers + 1, counted as in `DualEncoder.layer_id`."""
        for side, path in self._tower_paths.items():
            prefix = f"model.{path}."
            if name.startswith(prefix):
                depth = self._depth(side)
                return layer_of(name.removeprefix(prefix), self._blocks[side], self._stems[side], depth) + self.num_layers - depth
        return self.num_layers + 1


def own_names(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The library's state dict of a model under the names that an `HFDualEncoder` has for it."""
    rest = {f"model.{name}": value for name, value in stored.items() if name not in _SCALARS}
    return rest | library_scalars({name: value for name, value in stored.items() if name in _SCALARS})


def patches(pixels_B3HW: Tensor, patch: int) -> Tensor:
    """[B, N, patch * patch * 3]: the patches row by row, in each its rows, columns and colors, as SigLIP 2 reads them."""
    batch, channels, height, width = pixels_B3HW.shape
    grid = pixels_B3HW.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def library_scalars(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """`logit_scale` and `logit_bias` without dimensions, of what the library keeps: some have one dimension, and ALIGN divides
    by a `temperature`."""
    own: dict[str, Tensor] = {name: stored[name].reshape(()).clone() for name in ("logit_scale", "logit_bias") if name in stored}
    if "temperature" in stored:
        own["logit_scale"] = -stored["temperature"].reshape(()).log()
    return own


def _around(name: str) -> Iterator[str]:
    """The modules that a parameter is in, by name."""
    while name := name.rpartition(".")[0]:
        yield name


def _vectors(output: Any) -> Tensor:
    """What the library's methods call the pooled output is projected already."""
    vectors: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return vectors


def _leaves(output: Tensor) -> set[int]:
    """`id` of each parameter that a gradient of the output would reach: the ends of its graph. A backward pass would tell the
    same, and takes as long as building the graph."""
    found, seen, waiting = set(), set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (parameter := getattr(node, "variable", None)) is not None:
            found.add(id(parameter))
        waiting += [before for before, _ in node.next_functions]
    return found


def _meta(tensor: Tensor) -> Tensor:
    shape = tensor.detach().to("meta")
    return Parameter(shape, tensor.requires_grad) if isinstance(tensor, Parameter) else shape


def _tower_path(where: str, model: Any, side: str) -> str:
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise InputError(
            f"{where}: {type(model).__name__} has no get_image_features and get_text_features, so it is no dual encoder; two "
            "encoders of your choice make a DualEncoder (lightning_modules.networks.dual_encoder)"
        )
    for path in _TOWERS[side]:
        if isinstance(getattr(model, path, None), nn.Module):
            return path
    raise InputError(f"{where}: {type(model).__name__} has no {some(list(_TOWERS[side]))}; its {side} tower is not found")


def _image_input(where: str, name: str | None, settings: Any, image_size: int | None) -> ImageInput:
    if name is None and image_size is None:
        image_size = getattr(_vision(settings), "image_size", None)
    return image_input(where, read_processor(where, name, settings), image_size)


def _vision(settings: Any) -> Any:
    return settings.vision_config if hasattr(settings, "vision_config") else settings.image_config


def _longest(tokenizer: str) -> int:
    """What a tokenizer's own configuration says of the longest text; very long where it says nothing."""
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    if is_path(tokenizer) and not Path(tokenizer).expanduser().is_dir():
        return _NO_LIMIT  # whoever reads texts with it says that it is not there; to count parameters needs none
    without_waiting(tokenizer)
    with quiet_loading():
        stored = get_tokenizer_config(tokenizer)
    return int(min(stored.get("model_max_length") or _NO_LIMIT, _NO_LIMIT))
