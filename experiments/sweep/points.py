"""The points of a sweep file as launches, and a sweep file being run."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console

from datamodules.errors import InputError
from datamodules.files.atomic import write_atomically
from datamodules.files.json_file import read_json
from datamodules.files.locks import locked
from datamodules.files.references import look_up
from datamodules.files.text import read_text
from datamodules.files.yaml_file import parse_yaml
from experiments.papers.strict_yaml import file_age
from experiments.papers.worlds import world_folder
from experiments.runs.metrics_csv import history
from experiments.sweep.launches import Launch, read_command
from experiments.sweep.outcomes import known_state
from experiments.sweep.processes import visible_gpus
from experiments.sweep.request import Request
from experiments.sweep.runner import Runner
from experiments.sweep.search import Bayes, draws, grid, grid_size, hopeless, point_id
from experiments.sweep.status import without_running
from experiments.sweep.sweep_file import MOST_POINTS, Point, Sweep, command_of, write_json_file
from experiments.training.configs import packaged


def sweep_file(target: str) -> Path | None:
    """The file that a target names, here or in the package; None: the target is an exhibit or the like.

    Raises:
        InputError: It is the name of a YAML that does not exist.
    """
    if not target.endswith((".yaml", ".yml")):
        return None
    if Path(target).is_file():
        return Path(target)
    if (file := packaged(target)) is not None:
        return file
    raise InputError(f"sweep file {target} does not exist, here or in the package.")


def points_of(sweep: Sweep, count: int | None, search_seed: int) -> list[Point]:
    """All points of a grid, or the first `count`, and `count` draws.

    Raises:
        InputError: Random without a count.
    """
    count = count if count is not None else sweep.cap
    if count is None and sweep.method != "grid":
        raise InputError(f"{sweep.file}: method {sweep.method} has no end: give --count N, or run_cap in the file.")
    if sweep.method == "grid" and count is None and grid_size(sweep) > MOST_POINTS:
        raise InputError(
            f"{sweep.file}: the grid has {grid_size(sweep):,} points; {MOST_POINTS:,} are the most: leave values out, or give "
            "--count N for the first ones."
        )
    points = grid(sweep) if sweep.method == "grid" else draws(sweep, search_seed)
    return list(itertools.islice(points, count))


def point_launch(sweep: Sweep, point: Point, root: Path, gpus_here: int) -> Launch:
    """A point as a launch. Its folder carries a hash of the command line and of the configuration files that it names.

    Raises:
        InputError: The command names a folder for all points, or is one of crosslight's that makes no run.
    """
    words = command_of(sweep, point, json_file=_json_file(root, point), references=True)
    command = read_command(words, str(sweep.file))
    launch = Launch(
        key="", title=" ".join(_short(point)) or sweep.name, kind=sweep.name, folder=root,
        environment={"WANDB_RUN_GROUP": sweep.name}, **command,
    )  # fmt: skip
    texts = [text for file in launch.files if (text := _text(file)) is not None]
    words = [*([launch.command] if launch.command else launch.program), *launch.arguments[:-1]]  # without the folder
    key = hashlib.sha256(json.dumps([[look_up(word) for word in words], texts]).encode()).hexdigest()[:12]
    launch = replace(launch, key=key, folder=root / f"{sweep.name.replace('/', '-')}-{key[:8]}")
    if "CROSSLIGHT_WORLD" not in os.environ and any("CROSSLIGHT_WORLD" in text for text in texts):
        environment = {**launch.environment, "CROSSLIGHT_WORLD": str(world_folder(root, "target"))}
        launch = replace(launch, world="target", environment=environment)
    on_processor = not gpus_here or (launch.accelerator or _accelerator(tuple(texts))) == "cpu"
    return replace(launch, gpus=0 if on_processor else launch.processes)


def _fits(point: Point, sweep: Sweep) -> bool:
    """Whether a point has the sweep's parameters, and nothing else."""

    def names(content: Any, parameters: Any) -> bool:
        return (
            isinstance(content, dict)
            and content.keys() == parameters.keys()
            and all(
                names(content[name], entry)
                if isinstance(entry, dict)
                else not isinstance(content[name], float) or math.isfinite(content[name])
                for name, entry in parameters.items()
            )
        )

    return names(point, sweep.parameters)


def _json_file(root: Path, point: Point) -> Path:
    return root / "points" / f"{point_id(point)}.json"


def _text(file: str) -> str | None:
    """Of a YAML, here or in the package; None: it is not there, which the run itself says best."""
    found = Path(file) if Path(file).is_file() else packaged(file)
    return _text_of(found, file_age(found)) if found is not None else None


@lru_cache(maxsize=256)
def _text_of(file: Path, age: tuple[int, int]) -> str:
    """Thousands of points name the same few files."""
    return read_text(file, "a configuration")


@lru_cache(maxsize=256)
def _accelerator(texts: tuple[str, ...]) -> str | None:
    """trainer.accelerator of configuration files, of which the last wins."""
    accelerator = None
    for text in texts:
        try:
            content = parse_yaml(text, "a configuration")
        except InputError:  # the run itself says best what is wrong with it
            continue
        trainer = content.get("trainer") if isinstance(content, dict) else None
        if isinstance(trainer, dict):
            accelerator = trainer.get("accelerator", accelerator)
    return accelerator


def _short(point: Point) -> Iterator[str]:
    """lr=0.001 for model.init_args.optimization.lr: as a table has room for."""
    for name, value in point.items():
        if isinstance(value, dict):
            yield from _short(value)
        else:
            text = Path(value).stem if isinstance(value, str) and value.endswith(".yaml") else value
            yield f"{name.rpartition('.')[2]}={text}"


class Search:
    """A sweep file being run: its points, and what is known of them."""

    def __init__(self, sweep: Sweep, request: Request) -> None:
        self.sweep, self.request = sweep, request
        self.root = (request.out or Path("runs/sweeps") / sweep.name.replace("/", "-")).absolute()
        self.seed = request.search_seed or 0
        self.cap = request.count if request.count is not None else sweep.cap
        self.gpus_here = 0
        self.launches: dict[str, Launch] = {}

    def act(self, console: Console) -> int:
        bayes = self.sweep.method == "bayes"
        points = self._known() if bayes or self._asks_of_draws() else points_of(self.sweep, self.cap, self.seed)
        if bayes and self.cap is None and self.request.action == "run":
            raise InputError(f"{self.sweep.file}: method bayes has no end: give --count N, or run_cap in the file.")
        submits, only_shows = self.request.submit is not None, not self.request.starts
        if submits and (bayes or self.sweep.early_terminate):
            what = "method: bayes" if bayes else "early_terminate"
            raise InputError(
                f"{self.sweep.file}: {what} looks at other runs' results, and all jobs are submitted at once: submit grid or "
                "random without early_terminate, or run this file without --submit inside of an allocation (salloc)."
            )
        gpus = [] if submits or only_shows else visible_gpus()
        self.gpus_here = 1 if submits else len(gpus)
        launches = [self._launch(point) for point in points]
        if only_shows or submits:
            if not only_shows:
                self._note_draws(points)
            status = without_running(console, launches, self.root, self.request)
            if bayes and self.cap is not None:
                console.print(f"bayes chooses {max(0, self.cap - len(launches))} further points by the results of others")
            return status
        engine = Bayes(self.sweep, self.seed) if bayes else None
        if engine is None:
            self._note_draws(points)
        # what Optuna will suggest is not known yet, and is like what could be drawn
        drawn = itertools.islice(draws(self.sweep, self.seed), 9) if bayes else ()
        likely = [*launches, *(point_launch(self.sweep, point, self.root, len(gpus)) for point in drawn)]
        wants_gpus = any(launch.gpus for launch in likely)
        self.runner = Runner(
            launches, self.root, jobs=self.request.jobs, gpus=gpus if wants_gpus else [], retry_failed=self.request.retry_failed,
            more=None if engine is None else lambda: self._suggested(engine),
            judge=None if self.sweep.early_terminate is None else self._judge,
        )  # fmt: skip
        return self.runner.run()

    def _launch(self, point: Point) -> Launch:
        launch = point_launch(self.sweep, point, self.root, self.gpus_here)
        self.launches[launch.key] = launch
        if self.request.starts:
            write_json_file(self.sweep, point, _json_file(self.root, point))
        return launch

    def _suggested(self, engine: Bayes) -> Launch | None:
        """Optuna's next point, from all that are noted: those of another runner too."""
        with locked(self.root / ".locks" / "points"):
            points = self._known()
            if len(points) >= (self.cap or 0):
                return next((self._launch(point) for point in points if self._is_new(point)), None)
            values = self._values(points)
            measured = [(point, value) for point, value in zip(points, values, strict=True) if value != "failed"]
            point = engine.suggest([earlier for earlier, _ in measured], [value for _, value in measured])
            known = {point_id(earlier) for earlier in points}
            if point_id(point) in known:  # a small space: take a drawn point instead
                fresh = next((drawn for drawn in draws(self.sweep, self.seed) if point_id(drawn) not in known), None)
                if fresh is None:
                    return None
                point = fresh
            self._note([*points, point])
        return self._launch(point)

    def _is_new(self, point: Point) -> bool:
        return point_launch(self.sweep, point, self.root, self.gpus_here).key not in self.runner.entries

    def _values(self, points: Sequence[Point]) -> list[Any]:
        """The metric of each point; None while it runs; where it failed the worst of all, as W&B imputes it, or "failed"."""
        values: list[Any] = []
        for point in points:
            launch = point_launch(self.sweep, point, self.root, self.gpus_here)
            state = known_state(launch)[0]
            measured = history(launch.folder, str(self.sweep.metric))
            done = state in ("finished", "stopped_early") and measured
            values.append(measured[-1] if done else "failed" if state in ("failed", "oom", "finished") else None)
        known = [value for value in values if isinstance(value, float)]
        worst = "failed" if not known else min(known) if self.sweep.goal == "maximize" else max(known)
        return [worst if value == "failed" else value for value in values]

    def _judge(self, running: Mapping[str, Path]) -> Mapping[str, str]:
        assert self.sweep.early_terminate is not None
        histories = {key: history(launch.folder, str(self.sweep.metric)) for key, launch in self.launches.items()}
        return hopeless(self.sweep.early_terminate, self.sweep.goal == "maximize", histories, list(running))

    def _known(self) -> list[Point]:
        """Points that earlier calls and other runners chose, in their order.

        Raises:
            InputError: points.json cannot be read, or does not hold them.
        """
        file = self.root / "points.json"
        if not os.path.lexists(file):
            return []
        remedy = "Restore it, or move it away: what has run is found again by its folder."
        content = read_json(file, "the points of a sweep")
        points = content.get("points") if isinstance(content, dict) else None
        if not isinstance(points, list) or not all(isinstance(point, dict) and _fits(point, self.sweep) for point in points):
            raise InputError(f"{file} does not hold points of {self.sweep.file}. {remedy}")
        return points

    def _asks_of_draws(self) -> bool:
        """Whether status or cancel is asked of all that was drawn and started: which those are only the folder knows."""
        given = self.request.count is not None or self.request.search_seed is not None
        return self.sweep.method == "random" and self.request.action != "run" and not given and bool(self._known())

    def _note_draws(self, points: Sequence[Point]) -> None:
        """Another call may have drawn others, by its --count or --search-seed."""
        with locked(self.root / ".locks" / "points"):
            noted = self._known() if self.sweep.method == "random" else []
            known = {point_id(point) for point in noted}
            self._note([*noted, *(point for point in points if point_id(point) not in known)])

    def _note(self, points: Sequence[Point]) -> None:
        """Write the points down: Optuna goes on from them, and a reader sees what was swept."""
        self.root.mkdir(parents=True, exist_ok=True)
        content = {"file": str(self.sweep.file), "name": self.sweep.name, "method": self.sweep.method, "points": list(points)}
        write_atomically(self.root / "points.json", json.dumps(content, indent=1) + "\n")
