"""The repository's notebooks, executed in this process: a kernel of its own would import torch once more for each."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

FOLDER = Path(__file__).parents[2] / "notebooks"
_spec = importlib.util.spec_from_file_location("notebooks_execute", FOLDER / "execute.py")
assert _spec is not None
assert _spec.loader is not None
executing: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(executing)
NAMES: tuple[str, ...] = executing.NAMES


def execute(name: str, runs: Path, **parameters: Any) -> list[tuple[Any, str, list[dict[str, Any]]]]:
    """Each cell with what it printed and what it displayed, as MIME bundles.

    Args:
        name: Of the notebook.
        runs: In the place of its RUNS.
        parameters: More of its parameters.

    Raises:
        Exception: Of a cell, whatever it is.
    """
    notebook = executing.read(name, runs)
    InteractiveShell.clear_instance()
    shell: Any = InteractiveShell.instance()  # display() asks for it
    shell.history_manager.enabled = False
    done: list[tuple[Any, str, list[dict[str, Any]]]] = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            done.append((cell, "", []))
            continue
        values: list[Any] = []
        shell.display_trap.hook = values.append  # of the cell's last line
        with capture_output() as captured:
            result = shell.run_cell(cell.source)
        if not result.success:
            print(captured.stdout, captured.stderr)
        result.raise_error()
        shown = [output.data for output in captured.outputs]
        shown += [shell.display_formatter.format(value)[0] for value in values if value is not None]
        if "parameters" in cell.metadata.get("tags", ()):
            unknown = parameters.keys() - shell.user_ns.keys()
            assert not unknown, f"{name} has no parameter {unknown}"
            shell.user_ns.update(parameters)
        done.append((cell, captured.stdout, shown))
    return done
