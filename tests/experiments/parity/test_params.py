"""`crosslight params` against the published counts and those of the official code (../shared/facts/mwa.md, section 9)."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.errors import InputError
from experiments.cli.main import run_command
from experiments.parity import params

TOTALS = {"base 224": 222_167_041, "base 384": 222_458_881, "large 224": 674_799_617, "large 384": 675_188_737}
TUNABLE = {
    "base": {
        "mwa (printed)": 7_125_504,
        "mwa_released": 59_122_176,
        "mwa_text": 4_804_608 + 3 * 12,  # the official modules without, here with the learned scales: two KE, one AE a layer
        "ae_only": 7_125_504 - 2_379_264,
        "ke_only, mid 1": 55_320,
        "ke_only, mid 16": 608_640,
        "ke_only, mid 32": 1_198_848,
        "ke_only, mid 64": 2_379_264,
        "ke_only, mid 128": 4_740_096,
        "lora, rank 24": 7_077_888,
        "lora, attention, rank 64": 7_077_888,
        "head": 2 * 768 * 768 + 1,
        "frozen": 0,
    },
    "CLIP": {
        "mwa (printed)": 5_939_712,  # which experiments/papers/clip/runs.yaml gives LoRA as its budget
        "ke_only, mid 64": 12 * (2 * 768 * 64 + 64 + 768) + 12 * (2 * 512 * 64 + 64 + 512),
        "head": 768 * 512 + 512 * 512 + 1,
        "full": 151_277_313,
        "frozen": 0,
    },
    "large": {
        "mwa (printed)": 18_994_176,
        "mwa_released": 207_989_760,
        "mwa_text": 12_810_240 + 3 * 24,
        "ke_only, mid 64": 6_343_680,
        "lora, rank 24": 18_874_368,
        "head": 2 * 1024 * 1024 + 1,
        "frozen": 0,
    },
}


@dataclass(frozen=True)
class Report:
    """What `crosslight params` prints, and its tables with their networks: BEiT-3 of each size, CLIP."""

    printed: str
    tables: list[tuple[Any, list[params.Count]]]

    def section(self, title: str) -> list[str]:
        """The lines from the title on to an empty one."""
        return self.printed[self.printed.index(f"{title}  ") :].partition("\n\n")[0].splitlines()


@pytest.fixture(scope="module")
def report() -> Report:
    tables, table = [], params.table

    def noted(network: Any) -> list[params.Count]:
        tables.append((network, table(network)))
        return tables[-1][1]

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(params, "table", noted)
        assert run_command("params", []) == 0
    return Report(out.getvalue(), tables)


@pytest.mark.parametrize("size", TOTALS)
def test_counts_are_the_official_ones(size: str, report: Report) -> None:
    network, table = report.tables[list(TOTALS).index(size)]
    assert all(parameter.device.type == "meta" for parameter in network.parameters())
    assert params.parameters(network) == TOTALS[size]
    rows = {row.name: row for row in table}
    expected = TUNABLE[size.split()[0]]
    assert {name: rows[name].counts.trainable for name in expected} == expected
    for name, row in rows.items():
        assert row.counts.total == TOTALS[size] + row.counts.adapter, name
        assert row.counts.percent == pytest.approx(100 * row.counts.trainable / TOTALS[size]), name
    full = rows["full"].counts
    assert full.total - full.trainable == network.encoder.image_embed.mask_token.numel()  # which retrieval never uses
    printed = {
        "base 224": ["7,125,504", "229,292,545", "3.21", "28.5"],
        "base 384": ["7,125,504", "229,584,385", "3.20", "28.5"],
        "large 224": ["18,994,176", "693,793,793", "2.81", "76.0"],
        "large 384": ["18,994,176", "694,182,913", "2.81", "76.0"],
    }
    assert str(rows["mwa (printed)"]).split()[-4:] == printed[size]


def test_the_report_explains_the_papers_17_40_million(report: Report) -> None:
    printed = report.printed
    for size, total in TOTALS.items():
        assert f"BEiT-3 {size} px: {total:,} parameters" in printed
    note = " ".join(printed[printed.index("The paper prints") :].split())
    assert "The paper prints 17.40 M" in note
    assert "24 layers x 2 x (KE(768, 64) 99,136 + AE(1024, 128) 263,552) = 17,409,024, 2.58 %" in note
    assert "18,994,176, 2.81 %" in note
    assert 48 * (99_136 + 263_552) == 17_409_024
    for count in ("14,178,816", "44,101,632", "94,487,040", "47,243,520", "41,745,408"):  # I-Tuning of three sizes, half; ClipCap
        assert count in printed[printed.index("UNITER") :]


def _counted(lines: list[str]) -> dict[str, list[str]]:
    """The four counts of each line behind the first, by its name."""
    return {line[:35].strip(): line[35:].split() for line in lines[1:]}


def test_pair_scorers(report: Report) -> None:
    bert = (
        (30522 + 512 + 2 + 2) * 768 + 12 * (12 * 768**2 + 13 * 768) + 768**2 + 768
    )  # words, positions, types, norm; layers; pooler
    visual = (2 + 512) * 768 + 2048 * 768 + 768  # types, positions, projection
    counted = _counted(report.section("Pair scorers"))
    rank_8, mwa = 8 * 12 * (4 * 2 + 2 * 5) * 768, 7_125_504 // 2
    assert counted["VisualBERT base"] == [f"{bert + visual + 2 * 769:,}", "1,538", f"{rank_8:,}", f"{mwa:,}"]
    assert counted["ViLT base"] == ["111,595,777", "769", f"{rank_8:,}", f"{mwa:,}"]
    assert counted["BLIP base"][:2] == ["223,744,258", "1,538"]
    assert counted["BridgeTower base"][:2] == ["325,759,490", f"{2 * (2 * 768 + 1):,}"]


def test_dual_encoders_have_the_published_sizes(report: Report) -> None:
    """Of the models' cards, or of their files' bytes. SigLIP: positions, patches and words beside equal layers."""
    counted = _counted(report.section("Dual encoders"))
    published = {"openai/clip-vit-base-patch32": 151_277_313, "openai/clip-vit-base-patch16": 149_620_737,
                 "openai/clip-vit-large-patch14": 427_616_513, "openai/clip-vit-large-patch14-336": 427_944_193}  # fmt: skip
    assert {name: int(counted[name][0].replace(",", "")) for name in published} == published
    first, second = (int(counted[f"google/siglip{kind}-base-patch16-256"][0].replace(",", "")) for kind in ("", "2"))
    assert second - first == (256_000 - 32_000) * 768
    assert len([name for name in counted if name.startswith("google/siglip")]) == 6
    assert counted["openai/clip-vit-base-patch32"][1:] == [f"{768 * 512 + 512 * 512 + 1:,}", "2,211,840", "5,939,712"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(params, "hub_names", list)
        patch.setitem(sys.modules, "open_clip", None)
        assert "not counted: open_clip ViT-B-32: open_clip is not installed: pip install" in params.dual_encoders()[-1]


def test_open_clips_have_the_librarys_sizes() -> None:
    pytest.importorskip("open_clip", reason="open_clip is not installed: pip install 'crosslight[open_clip]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(params, "hub_names", list)
        counted = _counted(params.dual_encoders())
    assert {name: numbers[0] for name, numbers in counted.items()} == {
        "open_clip ViT-B-32": "151,277,313", "open_clip ViT-L-14": "427,616,513", "open_clip ViT-H-14": "986,109,441",
    }  # fmt: skip


def test_clips_rows_are_those_that_its_exhibit_runs(report: Report) -> None:
    network, table = report.tables[-1]
    assert all(parameter.device.type == "meta" for parameter in network.parameters())
    rows = {row.name: row.counts.trainable for row in table}
    expected = TUNABLE["CLIP"]
    assert {name: rows[name] for name in expected} == expected


def test_uniter_and_iais(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = report.section("UNITER")
    counted = {line[:25].strip(): line[25:].split() for line in lines[1:-1]}
    assert counted["base"] == ["109,901,059", "109,898,752", "85,054,464", "112,938,887"]  # the released one's
    assert counted["large"][:3] == ["335,698,947", "335,695,872", "302,309,376"]
    narrow, wide = 1024 * (768 + 2 + 1), 2048 * (768 + 2 + 1)  # the map, the learnt vectors, the bias of what comes out
    classes = 768**2 + 3 * 768 + 769 * 1601
    assert counted["base, own regions"][3] == f"{112_938_887 - wide + narrow - classes:,}"
    assert lines[-1] == "  IAIS adds 0: the loss has no parameters"
    monkeypatch.setattr(params, "IAIS", lambda kind, reading: torch.nn.Linear(2, 1 + (kind == "singular")))
    assert params.uniter()[-1] == "  IAIS adds 3 or 6"  # counted, not said


def test_loras_row_is_what_peft_puts_in() -> None:
    from lightning_modules.adapters.lora import LoRAAdapter
    from lightning_modules.adapters.tuning import set_tuning

    row = params.lora(params.build("base 224"), LoRAAdapter(rank=3, targets="ffn"), "x")
    network, adapter = params.build("base 224"), LoRAAdapter(rank=3, targets="ffn")
    with torch.device("meta"):
        adapter.inject(network)
    assert row.counts == set_tuning(network, adapter, "adapter")
    assert row.name == "x, rank 3"


@pytest.mark.parametrize(("arguments", "tunable", "total", "says"), [
    # weights and init_from are named but not there: nothing is read
    (["-c", "configs/model/beit3_base_384.yaml", "-c", "experiments/papers/mwa/variants/mwa.yaml"], 7_125_504, 229_584_385,
     "model.init_args.network.init_args.weights=/roots/weights/beit3_base_itc_patch16_224.pth"),
    (["-c", "configs/model/beit3_base_384.yaml", "-c", "experiments/papers/mwa/variants/mwa.yaml",
      "--model.init_args.adapter.init_args.knowledge_extractor_mid=0", "--model.init_args.train_heads=all"],
     4_746_240 + 1_179_649, 222_458_881 + 4_746_240, "not read"),
    # the counts that the files of these rows state: rank 23, and a length for each output of a layer; a factor for each output of
    # qkv and each input of fc2; of VeRA's two vectors one has the rank's length and one that of the layer's outputs
    *((["-c", "configs/model/beit3_base_384.yaml", "-c", f"experiments/papers/mwa/variants/{name}.yaml"], count, None, None)
      for name, count in {"dora": 2 * 12 * (23 * 16 * 768 + 9 * 768), "ia3": 2 * 12 * 7 * 768,
                          "vera": 2 * 12 * (4 * 1024 + 9 * 768)}.items()),
    (["-c", "configs/model/dual_tiny.yaml", "-c",
      "experiments/papers/mwa/variants/head.yaml"], 2 * 96 * 96 + 1, None, None),
    (["-c", "configs/model/dual_tiny.yaml", "-c",
      "experiments/papers/mwa/variants/lora.yaml", "--model.init_args.init_from=/no/run"],
     24 * (3 * (16 * 96) + 2 * (18 * 96)), None, "If they are not: "),
    (["-c", "configs/model/clip_tiny.yaml", "-c",
      "experiments/papers/mwa/variants/lora.yaml", "--model.init_args.init_from=/no/run"],
     24 * (5 * (18 * 96)), None, "If they are not: "),
])  # fmt: skip
def test_counts_of_a_configuration(
    arguments: list[str], tunable: int, total: int | None, says: str | None, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CROSSLIGHT_WEIGHTS", "/roots/weights")
    assert run_command("params", arguments) == 0
    printed = capsys.readouterr().out
    numbers = printed.splitlines()[1].replace(",", "").split()
    assert int(numbers[1]) == tunable
    assert total is None or int(numbers[2]) == total
    assert says is None or says in printed
    assert "brought by these weights" in printed or says != "If they are not: "
    assert list(tmp_path.iterdir()) == []


def test_arguments_that_are_no_configuration() -> None:
    with pytest.raises(InputError, match="takes nothing, or a configuration"):
        run_command("params", ["base"])
