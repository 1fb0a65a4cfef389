"""One configuration's life: each stage in its order, until one fails that the next ones build on."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from datamodules.errors import InputError
from datamodules.files.locks import take_lock
from experiments.papers.worlds import world_folder, write_miniature_world
from experiments.rehearsal.afterwards import look_back
from experiments.rehearsal.apart import Ended, apart, to_its_end
from experiments.rehearsal.changes import Settings, batch_of, changed, training
from experiments.rehearsal.checks import Facts, check, needs_training, one_line
from experiments.rehearsal.devices import Device, Machine, device_here, device_named, misfit
from experiments.rehearsal.estimates import Notes, figures, lower_for_a_validation, validations
from experiments.rehearsal.watch import KILL_VARIABLE
from experiments.runs.provenance import REHEARSAL_VARIABLE
from experiments.runs.rehearsed import Figures, Stage, Verdict
from experiments.runs.results import read_results
from experiments.runs.sizes import decimal_bytes
from experiments.sweep.launches import Launch
from experiments.sweep.processes import environment_of

ROOM = 0.92  # of a device's memory: the rest is the driver's, the libraries', and what lies between blocks
Tell = Callable[[Verdict], None]


@dataclass(frozen=True)
class Place:
    """Where a life is lived.

    Args:
        root: Folder of runs, for what belongs to no single run: the embedded worlds.
        scratch: Folder of the rehearsals' run folders.
        settings: Of the rehearsal.
        on: The machine that the runs are meant for; None = what their recipes say.
        free: Free bytes of the disk that holds a folder.
    """

    root: Path
    scratch: Path
    settings: Settings
    on: Machine | None = None
    free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free


class InHand(InputError):
    """Another process rehearses the same."""


@dataclass
class Life:
    """A launch and its rehearsal.

    Args:
        launch: As the sweep would start it, its folder in the scratch folder.
        place: Where.
        tell: Given each verdict as soon as it is known.
    """

    launch: Launch
    place: Place
    tell: Tell

    def __post_init__(self) -> None:
        self.gpus = min(self.launch.gpus, self.place.settings.gpus)
        self.planned = self.place.on.count if self.place.on is not None and self.launch.gpus else max(1, self.launch.gpus)
        name = self.launch.folder.name
        self.watch = self.place.scratch / f"{name}.jsonl"
        self.log = self.place.scratch / "logs" / f"{name}.log"

    def live(self) -> Figures | None:
        """All stages. Returns what was measured, None where nothing was.

        Raises:
            InHand: Another process rehearses the same.
        """
        lock = take_lock(self.place.scratch / ".locks" / f"{self.launch.key}.life")
        if lock is None:  # before its folder is removed
            raise InHand(f"{self.launch.title} is being rehearsed by another process already, in {self.place.scratch}.")
        with lock:
            return self._live()

    def _live(self) -> Figures | None:
        shutil.rmtree(self.launch.folder, ignore_errors=True)
        self.watch.unlink(missing_ok=True)
        if self.launch.world is not None:
            write_miniature_world(world_folder(self.place.root, self.launch.world), self.launch.world)
        facts = self._check()
        if facts is None:
            return None
        room = self._disk(facts)
        return self._run(facts) if room and facts.complete else self._figures(facts)

    # ------------------------------------------------------------------------------------------------------------- before

    def _device(self, facts: Facts) -> Device | None:
        """That the run is meant for: --on's, else this machine's, else its recipe's. None: a processor, or one not known."""
        if not self.launch.gpus:
            return None
        if self.place.on is not None:
            return self.place.on.device
        recipe = None if self.launch.cost is None else device_named(self.launch.cost.device)
        return facts.gpu or recipe

    def _check(self) -> Facts | None:
        arguments = (self.launch, self.place.settings, self.gpus, self.watch, self.launch.scale == "full")
        facts: Facts | None = None
        stages: list[str] = []

        def take(told: list[object]) -> None:
            nonlocal facts
            for each in told:
                if isinstance(each, Verdict):
                    stages.append(each.stage)
                    self.tell(each)
                elif isinstance(each, Facts):
                    facts = each

        try:
            take(apart(_checked, *arguments, environment=self._environment(), log=self.log))
        except Ended as ended:
            take(ended.told)
            order: tuple[Stage, ...] = ("parse", "data", "weights")
            reached = next((stage for stage in order if stage not in stages), order[-1])
            why = f"{ended}: this machine's memory is too small to load it, take one with more" if ended.killed else str(ended)
            self.tell(Verdict(reached, "failed", why))
        except InputError as error:
            self.tell(Verdict("weights" if "data" in stages else "data" if stages else "parse", "failed", one_line(error)))
        if facts is not None:
            self.tell(self._devices(facts))
        return facts

    def _devices(self, facts: Facts) -> Verdict:
        """What the run wants and what is here."""
        wanted, here, on, device = self.planned, self.place.settings.gpus, self.place.on, self._device(facts)
        if not self.launch.gpus:
            return Verdict("devices", "passed", "a processor")
        kind = device.name if device is not None else self.launch.cost.device if self.launch.cost is not None else "GPU"
        batch = batch_of(facts.config)
        if training(self.launch.command) and batch is not None and batch % wanted:
            most = on.count if on is not None else here or batch
            near = sorted(_divisors(batch, most), key=lambda count: abs(count - wanted))[:2]
            said = f"batch_size {batch} does not divide among {wanted} devices: --devices {' or '.join(map(str, sorted(near)))}"
            return Verdict("devices", "failed", said)
        precision = str((facts.config.get("trainer") or {}).get("precision"))
        known = device is not None and (on is not None or facts.gpu is not None)  # the recipe's own does what it was written for
        if known and device is not None and (why := misfit(Machine(wanted, device), precision)):
            return Verdict("devices", "failed", why)
        if not here:
            said = (
                f"wants {wanted} x {kind} and here is no GPU: rehearsed on the processor, its time and memory there are not known"
            )
            return Verdict("devices", "unknown", said)
        if on is not None:
            there = f"{wanted} x {kind}; rehearsed on {self.gpus} of this machine"
            return Verdict("devices", "passed" if self.gpus == wanted else "unknown", there)
        if here < self.launch.gpus:
            fewer = max(_divisors(batch or here, here))
            said = f"wants {self.launch.gpus} x {kind} and here are {here}: --devices {fewer} (the numbers stay the same)"
            return Verdict("devices", "failed", f"{said}, or another machine; rehearsed on {here}")
        return Verdict("devices", "passed", f"{wanted} x {kind}")

    def _disk(self, facts: Facts) -> bool:
        """Whether there is room for its checkpoints, and for what it lacks."""
        free, needed, what = self.place.free(self.place.scratch), facts.checkpoint_bytes, ["checkpoints"]
        if not facts.complete and self.launch.cost is not None and self.launch.cost.disk_gb:
            needed += int(1e9 * self.launch.cost.disk_gb)  # of all its data and weights: which of them are there is not known
            what = ["data, weights", *(what if facts.checkpoint_bytes else [])]
        said = f"{' and '.join(what)} {decimal_bytes(needed)} of {decimal_bytes(free)} that are free"
        if free > needed:
            self.tell(Verdict("disk", "passed", said))
            return True
        remedy = f"free {decimal_bytes(needed - free)} of {self.place.root}, or give --out on another disk"
        self.tell(Verdict("disk", "failed", f"{said}: {remedy}"))
        return False

    # ------------------------------------------------------------------------------------------------------------ its run

    def _run(self, facts: Facts) -> Figures | None:
        settings, trains = self.place.settings, needs_training(facts, self.launch.command)
        launch = changed(self.launch, facts.changes, self.gpus, settings.processes)
        if not trains:
            self.tell(Verdict("steps", "skipped", "nothing trains"))
            self.tell(Verdict("resume", "skipped", "nothing trains"))
        elif not self._until_the_kill(launch):
            return self._figures(facts)
        try:
            to_its_end(launch, self._environment(), self.place.scratch, self.log)
        except Ended as ended:
            notes = Notes.read(self.watch)
            went_on = len(notes.attempts) > 1 and bool(notes.attempts[1])
            if trains and went_on:
                self.tell(self._resumed(notes))
            self.tell(Verdict("evaluation" if went_on or not trains else "resume", "failed", str(ended)))
            return replace(self._figures(facts), evaluation_seconds=None, hours=None)  # of some of its evaluations
        if trains:
            self.tell(self._resumed(Notes.read(self.watch)))
        results = read_results(self.launch.folder)
        tests = ", ".join(f"{each.data} {each.split}" for each in results.tests())
        if trains and validations(facts, Notes.read(self.watch)) < 1:
            gate = lower_for_a_validation(facts)
            said = f"the whole run ends before its first validation, which chooses the checkpoint: lower --trainer.{gate}"
            self.tell(Verdict("evaluation", "failed", said))
        else:
            self.tell(Verdict("evaluation", "passed", f"tested on {tests}" if tests else "validated"))
        found = self._figures(facts)
        self.tell(memory_verdict(found, facts, self.launch, self._device(facts)))
        self._look_back()
        return found

    def _until_the_kill(self, launch: Launch) -> bool:
        """The first attempt: some steps, a checkpoint before the last, and a kill behind it."""
        steps = self.place.settings.steps
        try:
            to_its_end(launch, {**self._environment(), KILL_VARIABLE: str(steps)}, self.place.scratch, self.log)
            why: str | None = f"it ended after fewer than {steps} optimizer steps: the training data are too few"
        except Ended as ended:
            killed = bool(Notes.read(self.watch).of("killed"))
            why = None if killed else str(ended)
            if why is not None and ended.killed:
                why = f"{ended}: out of this machine's memory; rehearse with a smaller --batch, or on a machine with more"
        if why is None and not (self.launch.folder / "checkpoints" / "last.ckpt").exists():
            why = "no checkpoint was written before the kill, so nothing would resume it"
        if why is not None:
            self.tell(Verdict("steps", "failed", why))
            return False
        seconds = Notes.read(self.watch).seconds_per_step
        self.tell(Verdict("steps", "passed", f"{steps} optimizer steps" + (f", {seconds:.3g} s each" if seconds else "")))
        return True

    def _resumed(self, notes: Notes) -> Verdict:
        """The step that was lost with the kill came again, with the same losses."""
        lost = self.place.settings.steps - 1
        began = notes.of("fit")[-1]["step"]
        if began != lost:
            return Verdict("resume", "failed", f"it went on at step {began} and not at {lost}, where its checkpoint was")
        before, after = notes.losses(0, lost), notes.losses(-1 % len(notes.attempts), lost)
        if before == after:
            said = "the same loss" if None not in before else "the module tells no loss that could be compared"
            return Verdict("resume", "passed" if None not in before else "unknown", f"at step {lost + 1}, {said}")
        gap = max(
            (abs(one - two) / max(abs(one), 1e-12) for one, two in zip(before, after, strict=False) if one and two), default=1.0
        )
        if self.gpus and len(before) == len(after) and gap < 1e-3:
            return Verdict(
                "resume", "passed", f"at step {lost + 1}, losses differ by {gap:.1e} (sums on a GPU have no fixed order)"
            )
        return Verdict(
            "resume", "failed", f"step {lost + 1} after the kill has other losses than before it: {before} and {after}"
        )

    def _look_back(self) -> None:
        scale = self.launch.scale or "miniature"
        arguments = (self.launch.folder, self.launch.names, scale, self.launch.command != "fit")
        told: list[object] = []
        try:
            told = apart(look_back, *arguments, environment=self._environment(), log=self.log)
        except Ended as ended:
            told = [*ended.told]
            done = [each.stage for each in told if isinstance(each, Verdict)]
            told.append(Verdict("report" if "export" in done else "export", "failed", str(ended)))
        except InputError as error:
            told = [Verdict("export", "failed", one_line(error))]
        for each in told:
            if isinstance(each, Verdict):
                self.tell(each)

    # ------------------------------------------------------------------------------------------------------------ helpers

    def _environment(self) -> dict[str, str]:
        environment = environment_of(self.launch, self.gpus or self.place.settings.processes) | {REHEARSAL_VARIABLE: "1"}
        if self.launch.world is not None:
            environment["CROSSLIGHT_WORLD"] = str(world_folder(self.place.root, self.launch.world))
        return environment

    def _figures(self, facts: Facts) -> Figures:
        file = self.launch.folder / "results.json"
        results = read_results(self.launch.folder) if file.exists() else None
        found = figures(facts, Notes.read(self.watch), self.place.settings, results, self.launch.folder, self.gpus, self.planned)
        return found if found.device else replace(found, device="GPU" if self.gpus else "processor")


def _checked(launch: Launch, settings: Settings, gpus: int, watch: Path, whole: bool, tell: Callable[[object], None]) -> None:
    """`check` in a process of its own: the facts are told last."""
    from experiments.training.quiet import quiet

    quiet()
    logging.getLogger("crosslight").setLevel(logging.ERROR)  # what a run says of itself, it says when it starts
    facts = check(launch, settings, gpus, watch, whole, tell)
    if facts is not None:
        facts.gpu = device_here() if gpus else None
        tell(facts)


def _divisors(batch: int, most: int) -> list[int]:
    return [count for count in range(1, min(batch, most) + 1) if batch % count == 0]


def memory_verdict(found: Figures, facts: Facts, launch: Launch, device: Device | None) -> Verdict:
    """Whether it fits, by what was measured on a GPU or counted on a processor.

    Args:
        found: What was measured.
        facts: Of the run.
        launch: It.
        device: That it is meant for; None = a processor, or a GPU that devices.yaml lacks.
    """
    if not launch.gpus:
        return Verdict("memory", "passed", f"{decimal_bytes(found.resident_bytes or 0)} of the machine's")
    taken, how = (found.peak_bytes, "measured") if found.peak_bytes else (found.counted_bytes, "counted")
    if found.peak_bytes and found.counted_bytes:
        here = "; ".join((f"on {found.processes} devices", *found.cut))
        taken, how = found.counted_bytes, f"computed from {decimal_bytes(found.peak_bytes)} measured ({here}):"
    if taken is None or device is None:
        why = "its memory was not counted" if taken is None else "devices.yaml does not know the device: --on 8xA100 names one"
        return Verdict("memory", "unknown", f"{how} {decimal_bytes(taken)}; {why}" if taken is not None else why)
    said = f"{how} {decimal_bytes(taken)} of {device.name}'s {device.memory_gb:g} GB"
    if taken <= ROOM * device.memory_gb * 1e9:
        return Verdict("memory", "passed", said)
    return Verdict("memory", "failed", f"{said}: {_smaller(facts)}")


def _smaller(facts: Facts) -> str:
    """What takes less memory and leaves the numbers as they are."""
    arguments = (facts.config.get("model") or {}).get("init_args") or {}
    if "gradient_cache_chunk" in arguments:
        return "give a smaller --model.init_args.gradient_cache_chunk (the same gradients), more devices, or a larger GPU"
    return "half the batch_size with twice accumulate_grad_batches, more devices, or a larger GPU"
