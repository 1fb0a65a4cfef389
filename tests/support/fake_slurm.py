"""A queue of our own in place of Slurm's, and launches to put into it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from experiments.runs.results import Results, ResultsStatus, now, write_results
from experiments.sweep.launches import Launch

# sbatch, squeue, scontrol and scancel over a file of lines JOB_ELEMENT|STATE|REASON; what is called is noted.
QUEUE = """\
import os, re, sys
from pathlib import Path
folder, name = Path(__file__).parent, Path(sys.argv[0]).name
queue = folder / "queue"
rows = [line.split("|") for line in queue.read_text().splitlines()] if queue.exists() else []
with open(folder / "called", "a") as called:
    called.write(" ".join([name, *sys.argv[1:]]) + chr(10))
if name == "sbatch":
    script = Path(sys.argv[-1]).read_text()
    job = max([10, *(int(row[0].split("_")[0]) for row in rows)]) + 1
    reason = "Dependency" if "--dependency" in script else "Priority"
    for index in range(int(re.search("array=0-([0-9]+)", script)[1]) + 1):
        rows.append([f"{job}_{index}", "PENDING", reason])
    print(f"{job};cluster")
elif name == "squeue":
    print("".join("|".join(row) + chr(10) for row in rows), end="")
elif name == "scontrol":
    if sys.argv[1] == "requeue":
        rows = [[row[0], "PENDING", "BeginTime"] if row[0] == sys.argv[2] else row for row in rows]
    else:
        state, reason = next(row[1:] for row in rows if row[0] == sys.argv[-1])
        print(f"JobId=11 ArrayJobId=11 JobState={state} Reason={reason} Dependency=(null)")
elif name == "srun":
    sys.exit(3)
elif name == "scancel":
    rows = [[row[0], "CANCELLED", "None"] if row[0] in sys.argv[1:] else row for row in rows]
else:
    sys.exit("Slurm accounting storage is disabled")
queue.write_text("".join("|".join(row) + chr(10) for row in rows))
"""


class Queue:
    """The fake cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "queue.py").write_text(QUEUE)
        for name in ("sbatch", "squeue", "scontrol", "scancel", "sacct", "srun"):
            program = folder / name
            program.write_text(f"#!{sys.executable} -SE\n{QUEUE}")
            program.chmod(0o755)

    def becomes(self, **states: str) -> None:
        """State of elements, as j11_0="RUNNING"."""
        rows = dict(line.split("|", 1) for line in (self.folder / "queue").read_text().splitlines())
        rows |= {job[1:]: state if "|" in state else f"{state}|None" for job, state in states.items()}
        (self.folder / "queue").write_text("".join(f"{job}|{row}\n" for job, row in rows.items()))

    def called(self, name: str) -> list[str]:
        file = self.folder / "called"
        return [line for line in file.read_text().splitlines() if line.startswith(name)] if file.exists() else []


def launch(root: Path, name: str, after: tuple[str, ...] = (), gpus: int = 0, **more: Any) -> Launch:
    environment = {"CROSSLIGHT_WORLD": "a b"}
    return Launch(name, name, "k", root / name, "run", environment=environment, after=after, gpus=gpus, **more)


def ended(each: Launch, status: ResultsStatus, error: str | None = None) -> None:
    each.folder.mkdir(parents=True, exist_ok=True)
    write_results(each.folder, Results(status, "run", each.title, "c", now(), error=error))
