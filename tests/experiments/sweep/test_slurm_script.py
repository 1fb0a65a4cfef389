"""Launches as arrays, and the batch script of one."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from fake_slurm import launch

from datamodules.errors import InputError
from experiments.sweep import slurm_script
from experiments.sweep.slurm_script import SlurmOptions, arrays_of, script_of


def test_arrays_are_launches_of_one_shape_and_one_start(tmp_path: Path) -> None:
    launches = [
        launch(tmp_path, "start"), launch(tmp_path, "a", ("start",)), launch(tmp_path, "b", ("start",)),
        launch(tmp_path, "ranks", ("start",), devices="2", nodes=3), launch(tmp_path, "gpu", (), 4),
        launch(tmp_path, "last", ("a", "b")),
    ]  # fmt: skip
    arrays = arrays_of(launches, SlurmOptions(nodes=2, gpus_per_node=8))
    assert [[each.title for each in array.launches] for array in arrays] == [["start"], ["a", "b"], ["ranks"], ["gpu"], ["last"]]
    shapes = [(array.shape.nodes, array.shape.processes, array.shape.gpus) for array in arrays]
    assert shapes == [(1, 1, 0), (1, 1, 0), (3, 2, 0), (2, 8, 8), (1, 1, 0)]
    assert arrays[3].launches[0].argv[-3:-1] == ("--trainer.devices=8", "--trainer.num_nodes=2")  # Lightning is told
    assert arrays[1].launches[0].argv == launches[1].argv
    many = arrays_of([launch(tmp_path, str(number)) for number in range(slurm_script.MOST + 1)], SlurmOptions())
    assert [len(array.launches) for array in many] == [slurm_script.MOST, 1]


def test_no_folder_adds_a_line_to_the_script(tmp_path: Path) -> None:
    (array,) = arrays_of([launch(tmp_path, "one")], SlurmOptions())
    with pytest.raises(InputError, match=r"goes into a line of the script"):
        script_of(array, tmp_path / "a\n#SBATCH --uid=0", SlurmOptions(), "mwa/table1", None)


def test_a_script_says_what_it_runs(tmp_path: Path) -> None:
    options = SlurmOptions(
        partition="gpu", account="me", time="8:00:00", cpus_per_task=4, mem="64G", at_once=2, constraint="a100", qos="low",
        setup=["module load cuda"], extra=["--mail-type=END"], gpus_per_node=2,
    )  # fmt: skip
    (array,) = arrays_of([launch(tmp_path / "its own", "one", (), 2), launch(tmp_path / "its own", "two", (), 2)], options)
    script = script_of(array, tmp_path / "its own", options, "mwa/table1", "afterok:7_1")
    header = re.findall("^#SBATCH (.*)$", script, re.MULTILINE)
    assert header == [
        "--job-name=mwa-table1", "--array=0-1%2", "--dependency=afterok:7_1", "--kill-on-invalid-dep=yes", "--nodes=1",
        "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=4", "--mem=64G", "--partition=gpu", "--account=me",
        "--qos=low", "--constraint=a100", "--time=8:00:00", "--signal=USR1@120", "--requeue", "--open-mode=append",
        f"--output='{tmp_path}/its own/slurm/%A_%a.out'", "--mail-type=END",
    ]  # fmt: skip
    assert "\nmodule load cuda\n" in script
    assert "srun --ntasks-per-node=2 --cpus-per-task=4 --kill-on-bad-exit=1" in script
    # the script up to its end of the case says the right command to the right element
    (tmp_path / "its own").mkdir()
    upper = script[: script.index("\nexec >>")].replace("module load cuda", "")
    shown = subprocess.run(
        ["bash", "-c", upper + '\nprintf "%s\\n" "$key" "$folder" "$CROSSLIGHT_WORLD" "$@"'],
        env={"SLURM_ARRAY_TASK_ID": "1", "PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert shown == ["two", f"{tmp_path}/its own/two", "a b", *array.launches[1].argv]
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    for wrong, message in (
        ({"nodes": 0}, "--slurm.nodes is 0"), ({"extra": ["x"]}, "'x', which is no option of sbatch"),
        ({"extra": ["--x\rrm"]}, "which is no option of sbatch"), ({"partition": "a\nrm -rf /"}, "--slurm.partition is"),
        ({"time": "1:00 --wrap=x"}, "--slurm.time is"), ({"constraint": ""}, "--slurm.constraint is"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            SlurmOptions(**wrong)
