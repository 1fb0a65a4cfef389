"""Any dual encoder of open_clip, whole: its towers, projections, temperature, bias, transform and tokenizer."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
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
from lightning_modules.networks.dual_encoder import TwoTowers
from lightning_modules.networks.network import pixels_of
from lightning_modules.networks.open_clip_tokenizer import OpenCLIPTokenizer
from lightning_modules.networks.quiet_loading import first_line
from lightning_modules.networks.start import RANDOM, fresh_names, to_read
from lightning_modules.networks.towers.base import ImageTower, TextTower, triple

_SCHEMES = ("hf-hub:", "local-dir:")


class OpenCLIPDualEncoder(TwoTowers):
    """A model of the library open_clip (pip install 'crosslight[open_clip]'): OpenAI's, LAION's, DataComp's, SigLIP's ...

    Its outputs are the library's. Its own blocks hold their attention in one packed module, so LoRA finds the two layers of the
    FFN there; the MultiWay-Adapter goes into all blocks.

    Args:
        name: The library's name (ViT-B-32; `open_clip.list_models()`), "hf-hub:OWNER/NAME", or "local-dir:FOLDER" with
            open_clip_config.json and weights.
        weights: With a name of the library: a tag (laion2b_s34b_b79k; `open_clip.list_pretrained()`), which is downloaded, or
            a file of weights. random = random weights on purpose; null = random, to be trained or brought by init_from.
        config: In place of `name`: a configuration as in the library's JSON files (embed_dim, vision_cfg, text_cfg, ...).
        image_size: Side of the square input in pixels; null = the model's own. Position embeddings are resampled.
        preprocess: What of the image transform is otherwise than the model says, in the library's words: {mean: [...],
            std: [...], interpolation: bicubic, resize_mode: shortest}.
        checkpoint_activations: Recompute the towers' activations in the backward pass: less memory, about a third more compute.

    Raises:
        InputError: open_clip is not installed or knows no such model or tag; the weights do not fit or are not there; the model
            is no pair of encoders (CoCa), or its transform is one that data modules cannot do.
    """

    heads = ("image.model.proj", "image.model.head.", "text.model.text_projection", "text.model.proj.", "logit_")

    def __init__(
        self,
        name: str | None = None,
        weights: str | None = None,
        config: dict[str, Any] | None = None,
        image_size: int | None = None,
        preprocess: dict[str, Any] | None = None,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        if (name is None) == (config is None):
            raise InputError("open_clip: give either name (a model of the library) or config (embed_dim, vision_cfg, text_cfg)")
        self.where = f"open_clip {name or 'configuration'}"
        file = to_read(weights)
        if file is not None and (config is not None or _has_scheme(name)):
            own = "a config has no weights of its own" if config is not None else f"{name} brings its own weights"
            raise InputError(f"{self.where}: weights ({weights}) go with a name of the library; {own}")
        with _library(self.where):
            model, brought, context = (
                _configured(config, preprocess) if name is None else _named(name, file, image_size, preprocess)
            )
        self.image = OpenCLIPImageTower(model.visual, _image_input(self.where, model.visual.preprocess_cfg))
        tokenizer = OpenCLIPTokenizer(name, None if config is None else config.get("text_cfg"), context)
        vocabulary = int(model.vocab_size) or None
        self.text = OpenCLIPTextTower(model.text, TextInput(tokenizer, max_tokens=context, vocabulary=vocabulary), tokenizer)
        self.logit_scale = Parameter(model.logit_scale.detach().reshape(()).clone())
        self.logit_bias = None if model.logit_bias is None else Parameter(model.logit_bias.detach().reshape(()).clone())
        self.inputs = Inputs(image=self.image.image_input, text=self.text.text_input)
        self.fresh = fresh_names(self, weights, brought)
        self.loaded_heads = frozenset(head for head, _ in self.head_parameters()) if brought else frozenset()
        if checkpoint_activations:
            self.image.checkpoint_activations()
            self.text.checkpoint_activations()

    def encode_images(self, batch: ImageBatch) -> Tensor:
        """Unit vectors [B, D] in fp32.

        Raises:
            InputError: The batch carries no pixels.
        """
        return F.normalize(self.image(pixels_of(batch, "open_clip's encoders need")).float(), dim=-1)

    def encode_texts(self, batch: TextBatch) -> Tensor:
        """Unit vectors [B, D] in fp32."""
        return F.normalize(self.text(batch.tokens_BT, batch.mask_BT).float(), dim=-1)


class OpenCLIPImageTower(ImageTower):
    """An image encoder of open_clip with its projection.

    Args:
        model: The library's.
        image_input: How images become pixels.
    """

    def __init__(self, model: nn.Module, image_input: ImageInput) -> None:
        super().__init__()
        self.model, self.image_input = model, image_input
        self._finish(())

    def _encode(self, pixels_B3HW: Tensor) -> Tensor:
        return _pooled(self.model(pixels_B3HW))


class OpenCLIPTextTower(TextTower):
    """A text encoder of open_clip with its projection. It knows the end of a text by the ids behind it, so texts are padded to
    its whole context, as the library pads them.

    Args:
        model: The library's.
        text_input: How texts become tokens.
        tokenizer: What pads.
    """

    def __init__(self, model: nn.Module, text_input: TextInput, tokenizer: OpenCLIPTokenizer) -> None:
        super().__init__()
        self.model, self.text_input, self._tokenizer = model, text_input, tokenizer
        self._finish(())

    def _encode(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        padding, missing = self._tokenizer.padding, self.text_input.max_tokens - tokens_BT.shape[1]
        return _pooled(self.model(F.pad(tokens_BT.masked_fill(~mask_BT, padding), (0, missing), value=padding)))


def _pooled(output: Any) -> Tensor:
    """A model with `output_tokens` gives its tokens, too."""
    vectors: Tensor = output[0] if isinstance(output, tuple) else output
    return vectors


@contextmanager
def _library(where: str) -> Iterator[None]:
    """While inside, what open_clip says goes into one `InputError`, and what it logs (on the root logger) is left out.

    Raises:
        InputError: Whatever is raised inside.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f"{where}: {error.name or error} is not installed: pip install 'crosslight[open_clip]'") from error
    except Exception as error:  # of the library and of those below it: a damaged file or a wrong size can raise anything
        raise InputError(
            f"{where} cannot be built or loaded ({first_line(error)}); check the name, the file or the sizes, or download the "
            "weights once on a connected machine and give the file"
        ) from error
    finally:
        logging.disable(disabled)


def _named(name: str, file: str | None, image_size: int | None, preprocess: dict[str, Any] | None) -> tuple[Any, bool, int]:
    """A model of the library with its weights, whether it has some, and its context's length."""
    import open_clip

    if not _has_scheme(name):
        _require_known(open_clip, name, file)
    elif name.startswith("hf-hub:"):
        without_waiting(name.removeprefix("hf-hub:"))
    counted = torch.get_default_device().type == "meta"  # only to count: weights stay unread
    brought = file is not None or _has_scheme(name)
    model = open_clip.create_model(
        name, pretrained=file, load_weights=brought and not counted, device=torch.get_default_device(), force_custom_text=True,
        force_image_size=image_size, force_preprocess_cfg=preprocess, pretrained_text=False,
        require_pretrained=brought and not counted,
    )  # fmt: skip
    context = int((open_clip.get_model_config(name) or {}).get("text_cfg", {}).get("context_length", 77))
    return _pair_of_encoders(name, model), brought, context


def _configured(config: dict[str, Any] | None, preprocess: dict[str, Any] | None) -> tuple[Any, bool, int]:
    """A model of this configuration, with random weights."""
    from open_clip.model import CustomTextCLIP, set_model_preprocess_cfg
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    options = {key: value for key, value in (config or {}).items() if key != "custom_text"}
    if isinstance(text := options.get("text_cfg"), dict) and "hf_model_name" in text:
        options["text_cfg"] = {**text, "hf_model_pretrained": False}
    if "multimodal_cfg" in options:
        raise _no_pair("this configuration")
    model = CustomTextCLIP(**options)
    size = {"size": model.visual.image_size}
    set_model_preprocess_cfg(model, merge_preprocess_dict(PreprocessCfg(), {**size, **(preprocess or {})}))
    return model, False, int(options["text_cfg"].get("context_length", 77))


def _pair_of_encoders(name: str, model: Any) -> Any:
    from open_clip import CustomTextCLIP

    if type(model) is not CustomTextCLIP:
        raise _no_pair(name)
    return model


def _no_pair(name: str) -> InputError:
    return InputError(f"open_clip: {name} is a CoCa, which also writes; choose a model of two encoders")


def _has_scheme(name: str | None) -> bool:
    return (name or "").startswith(_SCHEMES)


def _require_known(library: Any, name: str, file: str | None) -> None:
    """See that the library knows a model, and the tag; of a tag on the hub, that nobody waits for a hub that does not answer.

    Raises:
        InputError: It does not; names those that are near.
    """
    if name not in (models := library.list_models()):
        near = difflib.get_close_matches(name, models, 5, 0.5)
        raise InputError(
            f"open_clip has no model {name!r}; near names: {some(near) or 'none (open_clip.list_models())'}. A hub entry is "
            "hf-hub:OWNER/NAME, a folder local-dir:FOLDER."
        )
    if file is None or Path(file).expanduser().is_file():
        return
    tags = library.list_pretrained_tags_by_model(name)
    if file not in tags:
        raise InputError(
            f"open_clip {name}: weights {file!r} are neither a file nor a tag of this model; it has "
            f"{', '.join(tags) or 'none'}. ({RANDOM} means random weights on purpose.)"
        )
    without_waiting(str(library.get_pretrained_cfg(name, file).get("hf_hub") or name).rstrip("/"))


def _image_input(where: str, preprocess: dict[str, Any]) -> ImageInput:
    """The library's evaluation transform in the terms of data modules.

    Raises:
        InputError: It does something that `ImageInput` has no word for.
    """
    size, mode = preprocess["size"], preprocess["resize_mode"]
    height, width = (size, size) if isinstance(size, int) else size
    ways: dict[str, Literal["crop", "squash"]] = {"shortest": "crop", "squash": "squash"}
    if height != width or mode not in ways:
        what = f"images of {height} x {width} pixels" if height != width else f"resize_mode {mode}"
        raise InputError(f"{where} wants {what}, which data modules cannot do; give preprocess: {{resize_mode: squash}}, say")
    # for tests the library takes "random" for bicubic
    bilinear = preprocess["interpolation"] == "bilinear"
    return ImageInput(
        size=int(height),
        mean=triple(preprocess["mean"], (), "mean"),
        std=triple(preprocess["std"], (), "std"),
        resize=ways[mode],
        interpolation="bilinear" if bilinear else "bicubic",
    )
