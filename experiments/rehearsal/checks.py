"""The stages before anything trains: does it parse, are the data whole, are the weights sound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.files.yaml_file import read_yaml
from experiments.rehearsal.changes import LENGTHS, Changes, Settings, changed, changes, training
from experiments.rehearsal.devices import Device
from experiments.runs.rehearsed import Stage, Verdict
from experiments.sweep.launches import Launch

Tell = Callable[[Verdict], None]


@dataclass
class Facts:
    """What of a run is known before it starts.

    Args:
        config: The run's own, resolved.
        changes: Of the rehearsal.
        counts: Images of the splits of each data set, by its name in results.
        parameters: Of the network.
        tunable: Parameters that train.
        weight_bytes: Of all parameters and buffers.
        average_bytes: Of what trains once more, where a device keeps its average (EMA).
        checkpoint_bytes: Of the best checkpoint and the last, and of another last while it is written.
        pairwise: It scores pairs of images and captions, all of them.
        complete: Its data and weights are there: it can start.
        gpu: Of this machine, that it is rehearsed on; None = on the processor.
    """

    config: dict[str, Any]
    changes: Changes
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    parameters: int = 0
    tunable: int = 0
    weight_bytes: int = 0
    average_bytes: int = 0
    checkpoint_bytes: int = 0
    pairwise: bool = False
    complete: bool = False
    gpu: Device | None = None


def check(launch: Launch, settings: Settings, gpus: int, watch: Path, whole: bool, tell: Tell) -> Facts | None:
    """Parse, data and weights of a launch; what cannot work is told, and nothing that builds on it is looked at.

    Args:
        launch: As the sweep would start it.
        settings: Of the rehearsal.
        gpus: That the rehearsal has.
        watch: File of its callback.
        whole: The data shall be whole data sets (full scale): their counts are known.
        tell: Given each verdict as soon as it is known.

    Returns:
        What the run is, as far as it is known; None where its command line is wrong.
    """
    try:
        config = _parsed(launch).plain  # the sweep's own words: what they would refuse on this machine is not looked at
        facts = Facts(config, changes(launch.command, config, settings, gpus, watch))
        parts = _parsed(changed(launch, facts.changes, gpus, settings.processes))
        _require_sound(parts, launch, config)
    except InputError as error:
        tell(Verdict("parse", "failed", one_line(error)))
        return None
    without = facts.changes.without
    said = f"left out what this run has no option for: {', '.join(without)}" if without else ""
    tell(Verdict("parse", "passed", said, without))
    data = _told("data", lambda: _data(parts, facts, launch, whole), tell)
    network = _told("weights", lambda: _weights(parts, facts, data or []), tell)
    facts.complete = data is not None and network is not None
    return facts


def one_line(error: object) -> str:
    return " ".join(str(error).split())


def _told(stage: Stage, act: Callable[[], tuple[Any, list[str], str]], tell: Tell) -> Any:
    """What a stage gives, its verdict told; None where it gave nothing."""
    try:
        found, faults, said = act()
    except InputError as error:
        tell(Verdict(stage, "failed", one_line(error)))
        return None
    tell(Verdict(stage, "failed", "; ".join(faults)) if faults else Verdict(stage, "passed", said))
    return found


def _parsed(launch: Launch) -> Any:
    from experiments.training.configs import find_configs
    from experiments.training.lightning_cli import ParsedCLI

    return ParsedCLI([str(launch.command), *find_configs(list(launch.arguments))])


def _require_sound(parsed: Any, launch: Launch, config: Mapping[str, Any]) -> None:
    """What a run refuses before its folder is opened; its strategy and how long it trains as its own `config` says, and not the
    rehearsal's."""
    from experiments.training.ranges import require_values
    from experiments.training.strategies import require_supported
    from experiments.training.trainer_options import require_trainer

    own = config.get("trainer") or {}
    require_supported(own.get("strategy"))
    lengths = {name: value for name, value in own.items() if name in LENGTHS}
    whole = {**parsed.plain, "run_dir": str(launch.folder)}
    for trainer in (whole["trainer"], whole["trainer"] | lengths):
        require_values(str(launch.command), {**whole, "trainer": trainer})
    require_trainer(vars(parsed._instantiated("trainer")["trainer"]))


# -------------------------------------------------------------------------------------------------------------------- data


def _data(parts: Any, facts: Facts, launch: Launch, whole: bool) -> tuple[list[Any], list[str], str]:
    """The data modules, own first; what is wrong with them; how many images there are."""
    from experiments.training.trainer import data_name

    objects = parts._instantiated("data", "evaluate")
    found = {data_name(objects["data"]): objects["data"], **(objects.get("evaluate") or {})}
    own = ("train", "val", "test") if launch.command == "run" else ("train", "val") if launch.command == "fit" else ("test",)
    faults, said = [], []
    for place, (name, data) in enumerate(found.items()):
        if not hasattr(data, "splits"):
            said.append(f"{name} says nothing of its files")
            continue
        data.require_files()  # not prepare_data, which may fetch them
        counts = facts.counts[name] = dict(data.splits())
        for split in own if place == 0 else ("test",):
            if split in counts:
                data.records(split)  # whether its images are there
        faults += wrong_counts(data.name, counts, bool(data.options().get("held_out"))) if whole else []
        said.append(f"{name} {' / '.join(f'{count:,}' for count in counts.values())} images")
    return list(found.values()), faults, ", ".join(said)


def wrong_counts(name: str, counts: Mapping[str, int], held_out: bool = False) -> list[str]:
    """What a data set's splits hold that is not what is known of it, in one line; empty where nothing is wrong.

    Args:
        name: Of the data set.
        counts: Images by split.
        held_out: Images were left out on purpose, few of all.
    """
    known = read_yaml(Path(__file__).with_name("known_counts.yaml")).get(name, {})
    wrong = []
    for split, count in counts.items():
        share = 0.95 if held_out else 1
        ranges = [each if isinstance(each, list) else [int(each * share), each] for each in known.get(split, [])]
        if ranges and not any(least <= count <= most for least, most in ranges):
            wrong.append(f"{split} has {count:,} images, not {' or '.join(f'{most:,}' for _, most in ranges)}")
    if not wrong:
        return []
    remedy = f"fetch it again, or see what is missing with `crosslight data check {name} ROOT`"
    return [f"{name} is not whole ({'; '.join(wrong)}): {remedy}"]


# ----------------------------------------------------------------------------------------------------------------- weights


def _weights(parts: Any, facts: Facts, data: Sequence[Any]) -> tuple[Any, list[str], str]:
    """The model with its weights; what is wrong with them; how many there are."""
    from datamodules.inputs import Inputs

    module = parts._instantiated("model")["model"]
    network = getattr(module, "network", module)
    tensors = [*network.parameters(), *network.buffers()]
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    facts.parameters = sum(parameter.numel() for parameter in network.parameters())
    facts.tunable = sum(parameter.numel() for parameter in trained)
    facts.weight_bytes = sum(tensor.nbytes for tensor in tensors)
    size = sum(parameter.nbytes for parameter in trained)
    averages = _averages(facts.config)
    facts.average_bytes = size if None in averages else 0
    # weights; and twice weights and two moments; with an average the weights beside it
    facts.checkpoint_bytes = size + 2 * 3 * size + (3 * size if averages else 0)
    facts.pairwise = _is_pairwise(network)
    faults = zero_weights(module)
    inputs = getattr(network, "inputs", None)
    for each in data:
        if isinstance(inputs, Inputs) and hasattr(each, "connect"):
            each.connect(inputs)  # the tokenizer is there, region features fit
    said = f"{facts.parameters:,} parameters, {facts.tunable:,} train"
    return network, faults, said


def _averages(config: Mapping[str, Any]) -> list[Any]:
    """Where each average of the weights (EMA) is kept; None: where the model is."""
    from lightning_modules.callbacks.ema import EMA

    ours = f"{EMA.__module__}.{EMA.__name__}"
    callbacks = (config.get("trainer") or {}).get("callbacks") or []
    named = [each for each in callbacks if isinstance(each, Mapping) and each.get("class_path") == ours]
    return [(each.get("init_args") or {}).get("device") for each in named]


def _is_pairwise(network: Any) -> bool:
    from lightning_modules.networks.network import RankingNetwork

    return isinstance(network, RankingNetwork)


def zero_weights(module: Any) -> list[str]:
    """Matrices of the backbone that hold nothing but zeros: of a file that was made and never filled. (An adapter begins so.)"""
    from datamodules.errors import some
    from lightning_modules.checkpoints.fresh import fresh_parameters

    network, adapter = getattr(module, "network", module), getattr(module, "adapter", None)
    unused: frozenset[str] = getattr(network, "unused_parameters", frozenset)()
    passed_by = fresh_parameters(network) | unused
    empty = [
        name
        for name, parameter in network.named_parameters()
        if sum(size > 1 for size in parameter.shape) > 1  # a token or a bias may be zero
        and name not in passed_by
        and not (adapter is not None and adapter.owns(name))
        and not parameter.any()
    ]
    if not empty:
        return []
    return [f"{len(empty)} matrices hold only zeros ({some(empty)}): the weights file was never filled; fetch it again"]


def needs_training(facts: Facts, command: str | None) -> bool:
    """Whether anything trains: a run of a frozen model is a test."""
    return training(command) and facts.tunable > 0
