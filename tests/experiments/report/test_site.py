"""The site: self-contained, escaped, complete; its exports; the command."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fake_runs import fill, ranks, write_run
from fresh_process import modules_after

from datamodules.errors import InputError
from experiments.analysis import run_maps
from experiments.analysis.stored_maps import AttentionMaps, WordMaps, store_map, stored
from experiments.cli.main import run_command
from experiments.cli.report import chosen
from experiments.papers.catalogue import exhibit_names, read_exhibit
from experiments.papers.schema import Column
from experiments.report import exports
from experiments.report.collect import collect
from experiments.report.drawing import FAINT, INK, LINES, inline
from experiments.report.figures import draw
from experiments.report.site import differences
from experiments.runs.store import RunFolders

_VOID = {"meta", "link", "br", "img", "path", "use", "rect"}


class Page(HTMLParser):
    """What a page is made of, and whether its elements are closed in order."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.count: dict[str, int] = {}
        self.images_without_text = 0
        self.feed(file.read_text())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.count[tag] = self.count.get(tag, 0) + 1
        self.addresses += [str(given[name]) for name in ("href", "src", "srcset", "action") if name in given]
        self.ids += [str(given["id"])] if "id" in given else []
        self.images_without_text += tag == "img" and not given.get("alt")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag


def test_pages_ask_for_nothing(site: Path) -> None:
    files = sorted(site.glob("*.html"))
    assert len(files) == 10, "eight exhibits, the index and the runs"
    for file in files:
        text = file.read_text()
        assert not re.search(r"https?:", text), file.name
        assert "@import" not in text
        assert "url(" not in re.sub(r"url\(#", "", text)
        page = Page(file)
        assert not page.open
        for address in page.addresses:
            local = address.partition("#")[0]
            assert not local or local.startswith("data:") or (site / local).is_file(), f"{file.name}: {address}"
            if address.startswith("#"):
                assert address[1:] in page.ids, f"{file.name}: {address}"
        assert len(page.ids) == len(set(page.ids)), file.name
        assert page.count["h1"] == page.count["main"] == 1
        assert page.images_without_text == 0
        assert page.count.get("caption", 0) == page.count.get("table", 0)


def test_what_runs_say_is_text_and_not_markup(site: Path) -> None:
    text = (site / "mwa-table1.html").read_text() + (site / "runs.html").read_text() + (site / "i-tuning-table3.html").read_text()
    assert "<b>cause</b>" not in text
    assert "<24 GiB>" not in text
    assert "<snow>" not in text
    assert "&lt;snow&gt;" in text
    assert html.escape("Table 1: full fine-tuning <against> MWA & its cost") in text


def test_every_table_names_its_scale_and_every_missing_row_its_command(site: Path) -> None:
    for file in site.glob("*-*.html"):
        for table in re.findall(r"<caption>(.*?)</caption>", file.read_text(), re.DOTALL):
            assert "scale" in table or "Runs of" in table, f"{file.name}: {table}"  # a run names its own in a column
    assert "crosslight sweep run mwa/table1 --scale miniature --seeds 0 1" in (site / "mwa-table1.html").read_text()
    assert "crosslight sweep run" not in (site / "mwa-figure2.html").read_text()
    for name in ("mwa-table1.html", "index.html"):
        assert "tested: the recalls alone" in (site / name).read_text().lower()
    assert "tested: the recalls alone" in (site / "summary.md").read_text()


def test_a_claim_never_goes_beyond_its_scale(site: Path) -> None:
    lines = list(csv.DictReader((site / "claims.csv").open()))
    assert {line["claim"] for line in lines} >= {"loses less than 1 point", "outperforms ClipCap", "no significant decrease"}
    for line in lines:
        if line["verdict"] in ("supported", "contradicted"):
            assert line["scope"].startswith("at miniature scale, embedded world, ")
    index = (site / "index.html").read_text()
    assert "embedded world, 2 seeds" in index


def test_differences_have_strips_on_one_axis_a_column(home: Path, site: Path) -> None:
    (view,) = collect(["mwa/table1"], "miniature", RunFolders([home / "runs"]))
    found = differences(view)
    (reach,) = {row["coco_tr1"].reach for row in found.values()}
    ends = [
        value for row in found.values() for value in (row["coco_tr1"].low, row["coco_tr1"].high, row["coco_tr1"].paper) if value
    ]
    assert reach == max(map(abs, ends)), "the widest fills its half"
    mwa = found["MWA_64 (KE & AE)"]["coco_tr1"]
    assert mwa.mean is not None
    assert mwa.paper == pytest.approx(78.26 - 79.0, abs=0.2)
    assert mwa.places["mean"] == pytest.approx(50 + 46 * mwa.mean / reach, abs=0.1)
    assert mwa.band == f"[{exports.signed(mwa.low, 1)}, {exports.signed(mwa.high, 1)}]"
    nothing = found["out of luck"]["coco_tr1"]
    assert (nothing.ours, nothing.band, nothing.places["mean"]) == ("–", "", None)
    alone = replace(view, variants=(view.variants[0], *(each for each in view.variants if each.label == "out of luck")))
    assert differences(alone) == {}, "no table of dashes"
    text = (site / "mwa-table1.html").read_text()
    assert len(re.findall(r'<line class="paper"', text)) == sum(
        each.paper is not None and each.mean is not None for row in found.values() for each in row.values()
    )


def test_figures_take_the_pages_colors_and_say_what_they_show(site: Path) -> None:
    for name in ("mwa-figure2", "iais-figure3", "iais-figure5", "iais-figure6", "i-tuning-figure1"):
        text = (site / f"{name}.html").read_text()
        (svg, *_) = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
        assert "var(--ink)" in svg
        assert "var(--line-1)" in svg
        assert not re.search("|".join((INK, FAINT, *LINES)), svg)
        assert 'role="img" aria-label="' in svg
    assert "exp, γ = 5: 0.08" in (site / "iais-figure6.html").read_text()
    assert "Full scale, the paper&#39;s numbers" in (site / "i-tuning-figure1.html").read_text()
    assert "crosslight report iais/figure7 --maps" in (site / "iais-figure7.html").read_text()


def test_stored_maps_are_drawn(home: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    for folder in (home / "runs").glob("iais-*-s0-*"):
        (runs / folder.name).symlink_to(folder)
    (folder,) = (home / "runs").glob("iais-singular-s0-*")
    maps = AttentionMaps(("a", "<dog>"), np.eye(2), np.full((3, 3), 1 / 3), 'a "dog"', 1, 0.25, 0.5)
    store_map(folder, "relations.npz", maps)
    words = WordMaps(("dog",), np.ones((1, 2, 2)) / 4, np.zeros((4, 6, 3), np.uint8), (0.0, 0.0, 6.0, 4.0), "dog", "layer 1")
    store_map(folder, "words.npz", words)
    first, second = stored(folder)
    assert isinstance(first, AttentionMaps)
    assert (first.words, first.singular, first.layer) == (("a", "<dog>"), 0.25, 1)
    assert isinstance(second, WordMaps)
    assert second.covered == (0.0, 0.0, 6.0, 4.0)
    run_command("report", ["iais/figure7", "--runs", str(runs), "--out", str(tmp_path / "site")])
    text = (tmp_path / "site" / "iais-figure7.html").read_text()
    assert "IAIS losses of the pair: singular 0.25, distributed 0.5" in text
    assert text.count("<svg") == 2
    assert "data:image/png;base64," in text
    Page(tmp_path / "site" / "iais-figure7.html")
    for file in (folder / "attention_maps").iterdir():
        file.unlink()


def test_a_run_that_cannot_be_looked_at_is_told_and_not_the_end(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make_maps(folder: Path) -> Path:
        if folder.name.startswith("iais-none"):
            raise InputError(f"{folder} holds no checkpoint.")
        return folder / "attention_maps"

    monkeypatch.setattr(run_maps, "make_maps", make_maps)
    assert run_command("report", ["iais/figure7", "--maps", "--runs", str(home / "runs"), "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().err
    assert "attention maps: not possible: baseline: " in told
    assert "iais-singular" in told, "the other row is looked at"
    text = (tmp_path / "iais-figure7.html").read_text()
    assert "No attention maps of baseline: " in text
    assert "holds no checkpoint" in text


def test_another_unit_has_a_panel_and_categories_their_names(home: Path) -> None:
    (view,) = collect(["mwa/figure2"], "miniature", RunFolders([home / "runs"]))
    figure = view.exhibit.figure
    assert figure is not None
    minutes = Column("minutes", "Minutes", cost="seconds_per_epoch")
    (table,) = collect(["mwa/table1"], "miniature", RunFolders([home / "runs"]))
    cells = {variant.declared.runs["run"]: variant.cells for variant in table.variants}
    variants = tuple(
        replace(variant, cells={**variant.cells, "minutes": cells[variant.declared.runs["run"]]["minutes"]})
        for variant in view.variants
    )
    exhibit = replace(view.exhibit, columns=[*view.exhibit.columns, minutes], figure=replace(figure, categories=True))
    (picture,) = draw(replace(view, exhibit=exhibit, variants=variants))
    assert len(re.findall(r'id="mwa-figure2-0-axes_\d"', picture.svg)) == 2, "both recalls share one"
    shown = re.findall(r">([^<>]+)</text>", picture.svg)
    assert {"0", "1", "64", "Minutes", "recall@1, %"} <= set(shown)
    assert "16" not in shown, "places are the rows"
    assert "64 → " in picture.text
    (plain,) = draw(view)
    assert len(re.findall(r'id="mwa-figure2-0-axes_\d"', plain.svg)) == 1


def test_inline_svg_has_ids_of_its_own_and_no_name_spaces() -> None:
    svg = '<?xml version="1.0"?>\n<svg xmlns="http://x" xmlns:xlink="http://y"><!-- http://z --><path id="p1" d="M0"/>'
    text = inline(svg + '<use xlink:href="#p1" clip-path="url(#c)" style="stroke: #1c2127"/></svg>', "f-0", 'a "b" <c>')
    assert text == (
        '<svg role="img" aria-label="a &quot;b&quot; &lt;c&gt;"><path id="f-0-p1" d="M0"/>'
        '<use href="#f-0-p1" clip-path="url(#f-0-c)" style="stroke: var(--ink)"/></svg>'
    )


def test_exports_are_escaped_and_whole(home: Path, site: Path) -> None:
    latex = (site / "mwa-table1.tex").read_text()
    assert r"MWA\_64 (KE \& AE)" in latex
    assert r"3 \% of \$" in latex
    assert r"\textless{}against\textgreater{}" in latex
    body = latex[latex.index(r"\midrule") : latex.index(r"\bottomrule")]
    assert {line.count(" & ") for line in body.splitlines() if line.endswith(r"\\")} == {13}
    assert "Miniature scale" in latex
    markdown = (site / "mwa-table1.md").read_text()
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {16}
    assert r"304 % \| of base's 222M; a\_b" in markdown
    lines = list(csv.DictReader(io.StringIO((site / "mwa-table1.csv").read_text())))
    assert len(lines) == 5 * 6
    (view,) = collect(["mwa/table1"], "miniature", RunFolders([home / "runs"]))
    cell = view.cell("full fine-tuning", "coco_ir1")
    (line,) = [each for each in lines if each["row"] == "full fine-tuning" and each["column"] == "coco_ir1"]
    assert float(line["mean"]) == pytest.approx(cell.mean)
    assert float(line["published"]) == 61.4
    assert (line["n"], line["seeds"], line["scale"]) == ("2", "0 1", "miniature")
    assert line["difference"] == "", "the paper's numbers are of full scale"
    assert "222M; a\\_b" in latex
    assert [each["mean"] for each in lines if each["row"] == "out of luck"] == [""] * 6


def test_the_summary_has_everything_and_no_path_of_this_machine(home: Path, site: Path) -> None:
    text, content = (site / "summary.md").read_text(), json.loads((site / "summary.json").read_text())
    assert [each["name"] for each in content["exhibits"]] == exhibit_names()
    for each in exhibit_names():
        slug = each.replace("/", "-").replace("_", "-")
        assert text.count(f"](#{slug})") == text.count(f'<a id="{slug}">') == 1
        claims = read_exhibit(each).claims
        (found,) = (one for one in content["exhibits"] if one["name"] == each)
        assert [one["text"] for one in found["claims"]] == [claim.text for claim in claims]
    for kept in (text, json.dumps(content)):
        assert str(home) not in kept
        assert "/tmp" not in kept
        assert "NaN" not in kept
    assert "Miniature scale" in text
    (view,) = collect(["mwa/table1"], "miniature", RunFolders([home / "runs"]))
    cell = view.cell("full fine-tuning", "coco_ir1")
    assert cell.mean is not None
    (table1,) = (each for each in content["exhibits"] if each["name"] == "mwa/table1")
    stored = table1["rows"][0]["cells"]["coco_ir1"]
    assert stored["mean"] == pytest.approx(cell.mean, rel=1e-5)
    assert stored["seeds"].keys() == {"0", "1"}
    assert "| full fine-tuning |" in text
    assert table1["note"] == "The paper prints 304 % | of base's 222M; a_b."
    assert r"304 % \| of base's 222M; a\_b" in text
    assert f"{exports.number(cell.mean, 1)} ±" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") > 3 for line in tables)


def test_numbers() -> None:
    assert exports.number(None, 1) == "–"
    assert exports.number(-3.14159, 2) == "−3.14"
    assert exports.number(0.0023, 2) == "0.0023"
    assert exports.number(-0.015, 1) == "−0.015"
    assert exports.number(0.0000123, 2) == "1.2e−05"
    assert exports.number(0.0, 2) == "0.00"
    assert exports.number(225024.0, 0) == "225,024"
    assert exports.signed(0.5, 1) == "+0.5"


def test_folders_that_belong_to_nothing_are_listed_beside_exhibits(home: Path, tmp_path: Path) -> None:
    ranks_of = {"coco": ranks(np.random.default_rng(0), 0.5)}
    write_run(tmp_path / "mine" / "one", ranks_of, name="my own", seed=7)
    given = ["iais/figure6", str(tmp_path / "mine"), "--runs", str(tmp_path), "--out", str(tmp_path / "site")]
    assert run_command("report", given) == 0
    text = (tmp_path / "site" / "runs.html").read_text()
    assert "my own" in text
    assert re.search(r"coco test: rsum \d+\.\d<", text), "with its score"
    (tmp_path / "mine" / "two").mkdir()
    (tmp_path / "mine" / "two" / "results.json").write_text("{}")
    assert run_command("report", given) == 0
    text = (tmp_path / "site" / "runs.html").read_text()
    assert "my own" in text, "a broken run does not hide the others"
    assert "unreadable" in text
    with pytest.raises(InputError, match="there is no run in it"):
        run_command("report", [str(tmp_path / "site")])
    with pytest.raises(InputError, match="--title is of a report of folders alone"):
        run_command("report", [*given, "--title", "x"])


def test_what_is_chosen(home: Path, tmp_path: Path) -> None:
    assert chosen(["iais"])[0] == ["iais/figure3", "iais/figure5", "iais/figure6", "iais/figure7"]
    assert chosen(["mwa/table1", "mwa"])[0] == ["mwa/table1", "mwa/figure2"]
    assert len(chosen([])[0]) == 8
    assert chosen([str(tmp_path)]) == ([], [tmp_path])
    with pytest.raises(InputError, match="no paper"):
        chosen(["mwa/table9"])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        run_command("report", ["--out", str(tmp_path / "file")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no run of `crosslight sweep run` is there"):
        run_command("report", ["--runs", str(tmp_path / "empty"), "--out", str(tmp_path / "new")])
    assert not (tmp_path / "new" / "index.html").exists()


def test_a_report_needs_no_torch_and_only_figures_need_matplotlib(tmp_path: Path) -> None:
    fill(tmp_path / "runs", ["mwa/table1"], "miniature", [0])
    given = ("--runs", tmp_path / "runs", "--out", tmp_path / "site")
    modules = modules_after("report", "mwa/table1", *given, folder=tmp_path)
    assert "experiments.report.site" in modules
    assert not modules & {"torch", "matplotlib"}
    modules = modules_after("report", *given, folder=tmp_path)  # every figure, the schedules of IAIS too
    assert "matplotlib" in modules
    assert "torch" not in modules
