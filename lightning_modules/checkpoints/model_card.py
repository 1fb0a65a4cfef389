"""The model card of an export: README.md, with the metadata that the Hugging Face Hub reads.

What the model is for its module says (`Task`), what was measured its run (`Origins`); the rest is in adapter_config.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_modules.adapters.tuning import ParameterCounts

CARD_FILE = "README.md"
FOLDER = "path/to/this/folder"
"""What the card loads. `crosslight push` puts the repository's name in its place."""


@dataclass(frozen=True)
class Task:
    """What a trained module does, for its card.

    Args:
        pipeline_tag: Of the Hub's tasks; None where it has none for it.
        tags: What it is found by.
        example: Lines of Python that use `model`.
    """

    pipeline_tag: str | None = None
    tags: tuple[str, ...] = ()
    example: str = ""


@dataclass(frozen=True)
class Measured:
    """A metric of a test.

    Args:
        data: The data set.
        split: As results call it.
        metric: As in results.json.
        value: In its own unit: recalls in percent, caption scores as fractions.
        interval: 95 % over the images; None where the metric is no mean over them.
    """

    data: str
    split: str
    metric: str
    value: float
    interval: tuple[float, float] | None = None

    @property
    def text(self) -> str:
        """The interval, or nothing."""
        return "" if self.interval is None else f"[{self.interval[0]:.5g}, {self.interval[1]:.5g}]"


@dataclass(frozen=True)
class Origins:
    """Where a trained model comes from, without a path of the machine.

    Args:
        name: Of the run.
        facts: What made it: command, data, revision and so on, by what they are.
        datasets: What it was trained on.
        measured: Its tests.
        license: Of the export, as the Hub writes licenses, such as apache-2.0.
    """

    name: str | None = None
    facts: Mapping[str, str] | None = None
    datasets: tuple[str, ...] = ()
    measured: tuple[Measured, ...] = ()
    license: str | None = None


def card(
    config: Mapping[str, Any],
    counts: ParameterCounts,
    megabytes: float,
    *,
    task: Task,
    origins: Origins,
    base_models: Sequence[str] = (),
    trust: Sequence[str] = (),
    notes: str = "",
    mark: str | None = None,
) -> str:
    """The whole README.md.

    Args:
        config: The content of adapter_config.json.
        counts: Parameters of the network.
        megabytes: Of what was trained.
        task: What the model does.
        origins: Where it comes from.
        base_models: Models of the Hub that it is made of.
        trust: Modules of its author's own that it names.
        notes: Markdown for the end.
        mark: Why nothing of it is a result.
    """
    from huggingface_hub import EvalResult, ModelCardData  # late: tens of milliseconds

    network = config["network"].rpartition(".")[2]
    name = origins.name or f"adapter-for-{network}"
    results = [
        EvalResult(
            task_type=task.tags[0] if task.tags else "other",
            dataset_type=each.data,
            dataset_name=each.data,
            dataset_split=each.split,
            metric_type=each.metric,
            metric_name=f"{each.metric} {each.text}".strip(),
            metric_value=round(each.value, 6),
        )
        for each in origins.measured
    ]
    metadata = ModelCardData(
        library_name="crosslight",
        pipeline_tag=task.pipeline_tag,
        tags=[*task.tags, *(["adapter"] if config["adapter"] else [])] or None,
        base_model=list(base_models) or None,
        datasets=list(origins.datasets) or None,
        metrics=list(dict.fromkeys(each.metric for each in origins.measured)) or None,
        license=origins.license,
        model_name=name if results else None,
        eval_results=results or None,
    )
    sections = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {name}",
        "" if mark is None else f"**No result** ({mark}).",
        f"{counts.trainable:,} trained parameters ({counts.percent:.2f} % of {network}, {megabytes:.1f} MB): "
        f"{counts.adapter:,} adapter, {sum(math.prod(config['tensors'][part]) for part in config['trained']):,} beside it.",
        f"```python\n{_snippet(config, task, trust)}\n```",
        *_measured(origins.measured),
        *_facts(origins),
        f"## Adapter\n\n{_json(config['adapter']) if config['adapter'] else 'No adapter.'}",
        _backbone(config),
        notes,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _snippet(config: Mapping[str, Any], task: Task, trust: Sequence[str]) -> str:
    options, remarks = [f'"{FOLDER}"'], []
    if config["backbone_files"]:
        options.append('backbone="weights"')
        remarks.append("a folder that holds the files below")
    if trust:
        options.append(f"trust={json.dumps(list(trust))}")
        remarks.append(f"{'a file' if len(trust) == 1 else 'files'} of its author's, on PYTHONPATH")
    remark = f"  # {'; '.join(remarks)}" if remarks else ""
    lines = ["import lightning_modules", "", f"model = lightning_modules.load({', '.join(options)}){remark}"]
    return "\n".join([*lines, *([task.example] if task.example else [])])


def _measured(measured: Sequence[Measured]) -> list[str]:
    if not measured:
        return []
    rows = [f"| {each.data} | {each.split} | {each.metric} | {each.value:.5g} | {each.text} |" for each in measured]
    head = "## Measured\n\n| data | split | metric | value | 95 % interval |\n| --- | --- | --- | ---: | --- |\n"
    told = (
        "Recalls (`_r1`, `_r5`, `_r10`) are in percent. Intervals are over the images of the split; other seeds they leave out."
    )
    return [head + "\n".join(rows), told]


def _facts(origins: Origins) -> list[str]:
    facts = dict(origins.facts or {}) | {"license": origins.license or "none was given: ask whoever made it"}
    return ["## Made by\n\n" + "\n".join(f"- {name}: {text}" for name, text in facts.items())]


def _backbone(config: Mapping[str, Any]) -> str:
    backbone, files = config["backbone"], config["backbone_files"]
    listed = "\n".join(f"- {name}: sha256 {digest}" for name, digest in files.items())
    needed = f"It needs these files, which are not here:\n\n{listed}" if files else "No file of weights is needed."
    built = _json(config["backbone_config"]) if config["backbone_config"] else "How it is built is not recorded."
    return (
        f"## Backbone\n\nArchitecture {backbone['architecture'][:16]}, weights {backbone['weights'][:16]}, "
        f"{len(backbone['tensors'])} tensors; any other backbone is refused.\n\n"
        f"{needed}\n\n{built}"
    )


def _json(content: Any) -> str:
    return f"```json\n{json.dumps(content, indent=1)}\n```"
