"""Models of Hugging Face by name (weights included) or by configuration (random): towers, dual encoders, pair scorers."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import torch
from torch import nn

from datamodules.errors import InputError, some
from lightning_modules.networks.quiet_loading import hugging_face


def require_one(
    where: str, name: str | None, config: dict[str, Any] | None, weights: str | None, described: str = "model_type and sizes"
) -> None:
    """See that a model is named or described, and not both.

    Args:
        where: What is built, for messages.
        name: Hub name or folder.
        config: Instead of it: options.
        weights: A file for them.
        described: What a configuration says.

    Raises:
        InputError: Both or neither, or weights beside a name.
    """
    if (name is None) == (config is None):
        raise InputError(f"{where}: give either name (a hub name or local folder) or config ({described})")
    if name is not None and weights is not None:
        raise InputError(f"{where}: weights ({weights}) go with config; a name brings its own weights")


def read_settings(where: str, name: str | None, config: dict[str, Any] | None, kind: Any = None) -> Any:
    """The library's configuration object of a folder or hub name, or of options with a `model_type`.

    Args:
        where: What is built, for messages.
        name: Hub name or folder.
        config: Instead of it: options.
        kind: The library's class that it must be of; options need not say `model_type` then. None = any.

    Raises:
        InputError: There is none of that name, or it is of another kind, or has an option that the library does not know.
    """
    from transformers import AutoConfig

    folder = "a folder with config.json" if kind is None else f"a folder with config.json of a {kind.model_type}"
    remedy = f"give {folder}, a hub name (with network), or config: {{{'' if kind else 'model_type: ..., '}sizes}}"
    sizes = dict(config or {})
    model_type = sizes.pop("model_type", "(none given)" if kind is None else kind.model_type)
    with hugging_face(f"{where}: no usable configuration", remedy, name):
        if name is not None:
            settings = AutoConfig.from_pretrained(name, trust_remote_code=False)
        else:
            settings = AutoConfig.for_model(model_type, **sizes)
        if kind is not None and not isinstance(settings, kind):
            raise InputError(f"{where}: it is a {settings.model_type}, not a {kind.model_type}")
        require_known(where, settings, sizes)
    return settings


def require_known(where: str, settings: Any, given: dict[str, Any]) -> None:
    """See that a configuration has the options that it was made of, also in its parts: the library takes any, and ignores those
    that it does not know. (It may warn of its own defaults: call this where it is quiet.)

    Args:
        where: What is built, for messages.
        settings: The library's configuration object.
        given: The options.

    Raises:
        InputError: It has not; names those that are near.
    """
    known = set(inspect.signature(type(settings)).parameters) | set(vars(type(settings)()))
    if unknown := sorted(given.keys() - known - set(dir(type(settings)))):
        near = [name for option in unknown for name in difflib.get_close_matches(option, known, 1)]
        meant = f"; is {' and '.join(near)} meant?" if near else ""
        raise InputError(f"{where}: {type(settings).__name__} has no option {some(unknown)}{meant}")
    for key, options in given.items():
        if isinstance(options, dict) and key in getattr(settings, "sub_configs", {}):
            own = {name: value for name, value in options.items() if name != "model_type"}
            require_known(where, getattr(settings, key), own)


def build_model(where: str, settings: Any, name: str | None, attention: str | None, **extra: Any) -> nn.Module:
    """The library's bare model of a configuration, in fp32. By name its weights are loaded, and without one they are random.

    Args:
        where: What is built, for messages.
        settings: Of `read_settings`, or a part of it.
        name: Hub name or folder, whose weights are loaded (on the meta device, where only is counted, they stay unread).
        attention: "sdpa" or "eager"; None = what the library takes for this model.
        extra: Options of the model class.

    Raises:
        InputError: The library has no such model, or the weights do not fill it.
    """
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    model_class = MODEL_MAPPING.get(type(settings), None)
    if model_class is None:
        raise InputError(f"{where}: transformers has no bare model for {type(settings).__name__}")
    if "add_pooling_layer" not in inspect.signature(model_class.__init__).parameters:
        extra.pop("add_pooling_layer", None)
    if name is None or torch.get_default_device().type == "meta":
        with hugging_face(f"{where}: {model_class.__name__} cannot be built", "correct its sizes"):
            return model_class._from_config(settings, attn_implementation=attention, **extra).float()
    with hugging_face(f"{where}: weights cannot be loaded", "check that the folder is complete, or online", name):
        model, report = model_class.from_pretrained(
            name, config=settings, attn_implementation=attention, dtype=torch.float32, trust_remote_code=False,
            output_loading_info=True, **extra,
        )  # fmt: skip
    missing = sorted(report["missing_keys"])
    wrong = sorted(str(item[0]) for item in report.get("mismatched_keys", ()))
    if missing or wrong:
        raise InputError(
            f"{where}: its weights do not fill {type(model).__name__} (missing: {some(missing) or 'none'}; wrong shape: "
            f"{some(wrong) or 'none'}); the folder's config.json belongs to another model"
        )
    return model
