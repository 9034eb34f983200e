"""A judged table as plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest

from emabench.report import view, words
from emabench.tables.judge import Judged


def strings(data: object) -> Iterator[str]:
    if isinstance(data, dict):
        for value in data.values():
            yield from strings(value)
    elif isinstance(data, list):
        for value in data:
            yield from strings(value)
    elif isinstance(data, str):
        yield data


def test_it_is_strict_json_with_every_seed(ddpm: Judged) -> None:
    data = view.table(ddpm)
    assert json.loads(json.dumps(data, allow_nan=False, ensure_ascii=False)) == data
    row = data["metrics"]["fid"]["rows"]["b9999"]
    cell = ddpm.rows["b9999"].cells["fid"]
    assert cell.mean and row["mean"]["mean"] == cell.mean.mean
    assert list(row["by_seed"]) == [str(seed) for seed in range(11)], "the twelfth diverged"
    assert row["paired"]["3"] == pytest.approx(cell.values[3] - ddpm.rows["none"].cells["fid"].values[3])
    assert data["exploratory"] and data["stand_in"] and data["trained"].endswith("a stand-in")


def test_every_claim_of_this_scale_has_its_words(ddpm: Judged) -> None:
    data = view.table(ddpm)
    assert len(data["claims"]) + len(data["paper_scale_alone"]) == len(ddpm.rulings)
    gain = next(each for each in data["claims"] if each["text"] == "How far β = 0.9999 lowers FID")
    assert gain["verdicts"]["article"]["text"] == "direction seen, larger in the stand-in (exploratory)"
    assert gain["estimand"].startswith("in a typical (median) seed")
    effect = gain["effects"][0]
    assert (effect["better"], effect["worse"]) == (11, 0)
    assert effect["by_seed"]["11"] is None, "both rows of a diverged run have no number"
    assert all(-1 < x < 0 for seed, x in effect["by_seed"].items() if seed != "11")
    refuted = next(each for each in data["claims"] if each["check"])
    assert refuted["verdicts"]["article"]["kind"] == "cannot hold"


def test_nothing_of_a_stand_in_is_called_reproduced(ddpm: Judged, classifiers: Judged) -> None:
    for judged in (ddpm, classifiers):
        text = " ".join(strings(view.table(judged)))
        assert "reproduced" not in text and "contradicted" not in text
    data = view.overview([ddpm, classifiers])
    assert data["error_rate"] == words.overview(2)
    assert {each["kind"] for each in data["verdicts"]} == {str(kind) for kind in words.MARKS}


def test_perplexity_per_character_has_nats_beside_it(ddpm: Judged) -> None:
    metrics = {"fid": ddpm.table.metrics["fid"].model_copy(update={"unit": "per character"})}
    table = ddpm.table.model_copy(update={"metrics": {**ddpm.table.metrics, **metrics}})
    row = view.table(replace(ddpm, table=table))["metrics"]["fid"]["rows"]["none"]
    assert row["nats_per_character"] == pytest.approx(math.log(row["mean"]["mean"]))
    assert view.table(ddpm)["metrics"]["fid"]["rows"]["none"]["nats_per_character"] is None
