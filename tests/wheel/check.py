"""The wheel as a stranger has it: built from the tracked files, installed into a fresh environment, used from an empty folder.

    make wheel-check

It fetches what the package needs, so it stands apart from the tests. It prints every step, and ends with exit status 1 where one
fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("configs", "datamodules", "experiments", "lightning_modules")
NOT_SHIPPED = {
    "experiments/results/miniature/summary.md",
    "experiments/results/rehearsal/README.md",
}  # for readers of the repository
LOAD = """
import lightning_modules
model = lightning_modules.load("export")
print(type(model).__name__, sum(each.numel() for each in model.parameters()), "parameters, from", lightning_modules.__file__)
"""


def do(*words: str | Path, folder: Path, show: int = 3) -> str:
    """Run a program, and print the end of what it printed.

    Raises:
        SystemExit: It failed.
    """
    began = time.monotonic()
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, env=clean, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    print(f"$ {' '.join([Path(words[0]).name, *map(str, words[1:])])[:150]}    [{time.monotonic() - began:.0f} s]", flush=True)
    if done.returncode:
        sys.exit("\n".join([*lines[-40:], f"exit status {done.returncode}"]))
    for line in lines[-show:]:
        print(f"    {line[:150]}", flush=True)
    return done.stdout


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, text=True, capture_output=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (REPOSITORY / name).is_file()]


def built(folder: Path) -> Path:
    """The wheel, of a copy: what an earlier build left in the checkout cannot get into it."""
    source = folder / "source"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, source / name)
    do("uv", "build", "--wheel", "--quiet", "--out-dir", folder / "dist", source, folder=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def require_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    wanted = {name for name in tracked() if name.split("/")[0] in PACKAGES} - NOT_SHIPPED
    problems = [f"{name} is not in the wheel" for name in sorted(wanted - names)]
    problems += [f"{name} does not belong into it" for name in sorted(names - wanted) if ".dist-info/" not in name]
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        problems.append("LICENSE is not in the wheel")
    if "License-Expression: Apache-2.0" not in metadata:
        problems.append("its metadata do not name the license")
    extras = [line.partition(": ")[2] for line in metadata.splitlines() if line.startswith("Provides-Extra")]
    if problems:
        sys.exit("\n".join(problems))
    print(
        f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {len(names)} files, LICENSE; extras {', '.join(extras)}", flush=True
    )


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="crosslight-wheel-"))
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # uv is beside this Python
    wheel = built(folder)
    require_contents(wheel)
    do("uv", "venv", "--quiet", "--python", sys.executable, "venv", folder=folder)
    python = folder / "venv" / "bin" / "python"
    do("uv", "pip", "install", "--quiet", "--python", python, "-c", REPOSITORY / "constraints.txt", wheel, folder=folder)

    empty = folder / "somewhere"
    empty.mkdir()
    crosslight = python.with_name("crosslight")
    do(crosslight, "--version", folder=empty)
    do(crosslight, "--help", folder=empty, show=1)
    do(crosslight, "world", "world", "--scenes", "60", folder=empty)
    os.environ["CROSSLIGHT_WORLD"] = str(empty / "world")
    do(
        crosslight, "run", "-c", "configs/trainer/demo.yaml", "-c", "configs/model/dual_tiny.yaml",
        "-c", "configs/data/world.yaml", "-c", "experiments/papers/mwa/variants/mwa.yaml", "--trainer.max_epochs=1",
        "--data.init_args.batch_size=8", "--run_dir=run", folder=empty, show=8,
    )  # fmt: skip
    do(crosslight, "table", "run", folder=empty)
    do(crosslight, "export", "run", "export", folder=empty)
    do(python, "-c", LOAD, folder=empty)
    do(crosslight, "sweep", "run", "iais/table1", "--dry-run", folder=empty)
    do(crosslight, "report", "mwa/table3", folder=empty)
    shutil.rmtree(folder)
    print("the wheel is sound", flush=True)


if __name__ == "__main__":
    main()
