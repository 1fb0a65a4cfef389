"""Means by part, hardest queries and disagreements are those of the ranks."""

from __future__ import annotations

import numpy as np
import pandas
import pytest

from datamodules.errors import InputError
from experiments.report import slices


@pytest.fixture
def queries() -> pandas.DataFrame:
    """Two runs, four images of three captions each, in their order."""
    generator = np.random.default_rng(0)
    rows = {"query": np.arange(12), "image": np.arange(12) // 3, "caption": [f"caption {at}" for at in range(12)],
            "words": pandas.array([*range(5, 16), None], dtype="Int64"),
            "categories": [("animals",), ("animals", "scene"), ()] * 4}  # fmt: skip
    about = {"data": "coco", "split": "test", "kind": "t2i"}
    parts = [pandas.DataFrame({"run": run, **about, **rows, "rank": generator.integers(1, 30, 12)}) for run in ("one", "other")]
    return pandas.concat(parts, ignore_index=True).assign(found=lambda frame: frame["rank"] <= 10)


def test_means_are_of_the_queries_of_each_part_and_their_intervals_of_images(queries: pandas.DataFrame) -> None:
    table = slices.means_by(queries, "categories", "found").set_index(["run", "categories"])
    for (run, part), row in table.iterrows():
        inside = queries["categories"].map(lambda categories, part=part: part in categories)
        ours = queries[(queries["run"] == run) & inside]
        assert row["queries"] == len(ours)
        assert row["images"] == 4
        assert row["mean"] == pytest.approx(100 * ours["found"].mean())
        assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 100
    assert len(table) == 4, "a query without a category is in none"


def test_parts_of_lengths_are_about_equal_and_keep_their_order(queries: pandas.DataFrame) -> None:
    parts = slices.in_parts(queries["words"], 3)
    assert list(parts.cat.categories) == ["5–8", "9–12", "13–15"]
    assert parts.isna().sum() == 2, "a query that is no caption"
    table = slices.means_by(queries.assign(length=parts), "length", "found")
    assert list(table["length"].cat.categories) == ["5–8", "9–12", "13–15"]
    assert list(slices.in_parts(pandas.Series([7, 7, 7, 9])).cat.categories) == ["7", "9"], "fewer parts than asked for"


def test_the_hardest_have_the_worst_geometric_mean(queries: pandas.DataFrame) -> None:
    wide = queries.pivot(index="query", columns="run", values="rank")
    means = np.sqrt(wide["one"] * wide["other"])
    table = slices.hardest(queries, 3)
    assert table["query"].tolist() == means.sort_values(ascending=False, kind="stable").index[:3].tolist()
    assert table["one"].tolist() == wide["one"][table["query"]].tolist()


def test_disagreements_are_ratios_of_ranks(queries: pandas.DataFrame) -> None:
    table = slices.disagreements(queries, "one", "other")
    np.testing.assert_allclose(table["times"], table["other"] / table["one"])
    assert (np.abs(np.log(table["times"])).diff().dropna() <= 1e-12).all(), "the largest first"
    assert len(table) == 12
    with pytest.raises(InputError, match="no queries of third; there are those of one, other"):
        slices.disagreements(queries, "one", "third")
    with pytest.raises(InputError, match="on no data that both have"):
        slices.disagreements(queries.assign(data=queries["run"]), "one", "other")
    elsewhere = queries["run"] + queries["image"].astype(str)
    with pytest.raises(InputError, match="data of one name that are not the same images"):
        slices.disagreements(queries.assign(image_id=elsewhere), "one", "other")
    with pytest.raises(InputError, match="have no ranks"):
        slices.hardest(queries.assign(rank=np.nan))
