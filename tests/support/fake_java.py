"""Speaks the protocols of the PTB tokenizer, METEOR and SPICE, for tests on machines without Java. Not their scores.

`fake(folder)` writes a program `java`, which notes its arguments in `folder/calls` and does what `folder/behaviour` says.
"""

from __future__ import annotations

import sys
from pathlib import Path

PROGRAM = """\
#!{python} -IS
import json, sys
from pathlib import Path
here = Path({folder!r})
arguments = sys.argv[1:]
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
behaviour = (here / "behaviour").read_text() if (here / "behaviour").exists() else ""
if arguments == ["-version"]:
    print(f'openjdk version "{{behaviour if behaviour.startswith("1") else "17.0.9"}}" 2023-10-17', file=sys.stderr)
    sys.exit(0)
if behaviour == "fails":
    print('Exception in thread "main" java.lang.OutOfMemoryError: Java heap space\\n\\tat a.B.c(B.java:1)', file=sys.stderr)
    sys.exit(3)
if "edu.stanford.nlp.process.PTBTokenizer" in arguments:
    for line in Path(arguments[-1]).read_bytes().decode().split("\\n")[:-1]:
        print(line.lower().replace(".", " .").replace(",", " ,"))
elif "-stdio" in arguments:
    for number, line in enumerate(sys.stdin):
        if behaviour == "stops" and number == 1:
            print("Error: no dictionary", file=sys.stderr)
            sys.exit(1)
        kind, *parts = [part.strip() for part in line.rstrip("\\n").split("|||")]
        if kind == "SCORE":  # words of the candidate that a reference has, and all
            *references, candidate = parts
            words = candidate.split()
            print(sum(any(word in r.split() for r in references) for word in words), len(words))
        else:
            counts = [tuple(map(int, part.split())) for part in parts]
            for right, words in counts:
                print(right / words if words else 0.0)
            print(sum(right for right, _ in counts) / max(1, sum(words for _, words in counts)))
        sys.stdout.flush()
elif "edu.anu.spice.SpiceScorer" in arguments:
    asked = json.loads(Path(arguments[arguments.index("edu.anu.spice.SpiceScorer") + 1]).read_text())
    if behaviour == "silent":
        print("could not open the cache")
        sys.exit(0)
    scores = [{{"image_id": a["image_id"], "scores": {{"All": {{"f": 1.0 if a["test"] in a["refs"] else 0.25}}}}}} for a in asked]
    out = Path(arguments[arguments.index("-out") + 1])
    out.write_text(json.dumps(scores[::-1] if behaviour != "forgets" else scores[1:]))
"""


def fake(folder: Path) -> Path:
    """The program; it finds Python by its own path, not the environment's."""
    program = folder / "java"
    program.write_text(PROGRAM.format(python=sys.executable, folder=str(folder)))
    program.chmod(0o755)
    return program
