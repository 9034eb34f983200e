from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from emabench.errors import UserError
from emabench.tables import spec
from emabench.tables.boundary import required
from emabench.tables.claims.gain import Gain
from emabench.tables.judge import judge
from emabench.tables.parts import Amount
from emabench.tables.statistics import ALPHA

MINIMAL: dict[str, Any] = {
    "title": "A table",
    "section": "1.1",
    "question": "Does it?",
    "task": "ddpm",
    "metrics": {"fid": {"label": "FID", "better": "lower"}},
    "seeds": {"small": 5, "paper": 3},
    "arms": {"constant": {"small": ["schedule.name=constant"], "paper": ["schedule.name=linear"]}},
    "overrides": ["ema.decay=[0.9,0.99]"],
    "rows": {
        "raw": {"label": "none", "arm": "constant", "average": "raw", "reported": {"fid": 5.0}},
        "ema": {
            "label": "β",
            "arm": "constant",
            "average": {"small": "ema_0.9", "paper": "ema_0.99"},
            "reported": {"fid": 4.0},
            "published": [{"metric": "fid", "value": 3.0, "source": "someone"}],
        },
    },
    "claims": [
        {
            "type": "difference",
            "text": "better",
            "metric": "fid",
            "row": "ema",
            "over": "raw",
            "article": "better",
        }
    ],
    "sources": {"someone": {"text": "Someone 2020", "mark": "V"}},
}


def read(tmp_path: Path, change: dict[str, Any]) -> spec.Table:
    """The minimal table with some of its keys replaced ("rows.ema.arm": …), read from a file."""
    data = yaml.safe_load(yaml.safe_dump(MINIMAL))
    for key, value in change.items():
        *place, last = key.split(".")
        node = data
        for part in place:
            node = node[int(part)] if isinstance(node, list) else node[part]
        node[int(last) if isinstance(node, list) else last] = value
    path = tmp_path / "some_table.yaml"
    path.write_text(yaml.safe_dump(data))
    return spec.read(path)


@pytest.mark.parametrize("name", spec.names())
def test_every_table_is_sound(name: str) -> None:
    table = spec.load(name)
    assert table.name == name
    for arm in table.arms:
        for scale in ("smoke", "small", "paper"):
            assert table.words(arm, scale)[:2] == [f"task={table.task}", f"scale={scale}"]
            assert table.plan(scale).looks
    for key in table.rows:
        assert all(table.average(key, scale) for scale in ("smoke", "small", "paper"))


def test_numbers_of_the_article_are_its_own() -> None:
    ddpm = spec.load("ddpm_cifar10")
    assert [row.reported for row in ddpm.rows.values()] == [
        {"fid": 5.2, "is": 9.5},
        {"fid": 4.8, "is": 10.2},
        {"fid": 3.9, "is": 11.8},
        {"fid": 3.2, "is": 13.1},
    ]
    reported = [row.reported for row in spec.load("imagenet_resnet50").rows.values() if row.reported]
    assert [(row["top1"], row["top5"]) for row in reported] == [
        (76.1, 92.9),
        (76.4, 93.1),
        (76.5, 93.2),
        (76.6, 93.3),
    ]


def test_values_by_scale(tmp_path: Path) -> None:
    table = read(tmp_path, {})
    assert table.average("ema", "paper") == "ema_0.99"
    assert table.average("ema", "smoke") == "ema_0.9", "smoke is as small where it is not named"
    assert table.words("constant", "paper") == [
        "task=ddpm",
        "scale=paper",
        "ema.decay=[0.9,0.99]",
        "schedule.name=linear",
    ]
    assert (table.plan("small").looks, table.plan("paper").looks) == ((5,), (3,))
    assert table.plan("small").first == 100, "seeds below are for trying out"


def test_changes_come_from_numbers_of_one_source(tmp_path: Path) -> None:
    table = read(tmp_path, {"rows.raw.published": [{"metric": "fid", "value": 12.0, "source": "someone"}]})
    assert table.published_change("ema", "fid") == [pytest.approx(-0.75)]
    assert table.reported_change("ema", "fid") == pytest.approx(-0.2)
    assert read(tmp_path, {}).published_change("ema", "fid") == [], (
        "the source published no number without averaging"
    )
    assert table.against("ema") == "raw"
    assert table.against("raw") is None


def test_amounts() -> None:
    claim = Gain(
        type="gain",
        text="",
        metric="fid",
        row="a",
        over="b",
        article="-38%",
        literature=["-60%", "-74%"],
        tolerance="8%",
        sources=["x"],
    )  # type: ignore[arg-type]
    assert claim.article == (Amount(-0.38, True), Amount(-0.38, True))
    assert [end.value for end in claim.literature or ()] == [pytest.approx(-0.74), pytest.approx(-0.6)]
    assert str(Amount(-0.38, True)) == "−38%"
    assert not claim.only_at_paper_scale()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qestion": "?"}, "qestion: there is no such key; did you mean 'question'?"),
        ({"rows.ema.arm": "constnt"}, "rows.ema.arm=constnt: there is no such arm; did you mean 'constant'?"),
        ({"claims.0.row": "emma"}, "claims.0.row=emma: there is no such row; did you mean 'ema'?"),
        ({"claims.0.metric": "is"}, "claims.0.metric=is: there is no such metric"),
        ({"claims.0.type": "opinion"}, "claims.0"),
        ({"claims.0.article": None}, "claims.0: nobody expects anything"),
        ({"claims.0.literature": "worse"}, "claims.0: the literature's expectation needs its sources"),
        ({"claims.0.article": "equal"}, "equality is judged within a margin above zero"),
        ({"rows.ema.published.0.source": "somone"}, "rows.ema.published.source=somone"),
        ({"sources.someone.mark": "M"}, "sources.someone.mark=M"),
        ({"rows.ema.average": {"small": "ema_0.9"}}, "rows.ema.average: name one for small and one for paper"),
        ({"seeds": 0}, "seeds.looks.0=0"),
        ({"metrics": {}}, "metrics"),
        ({"claims.0": {"type": "gain", "text": "", "metric": "fid", "row": "ema", "over": "raw", "article": "-38%", "tolerance": 0.1}}, "all in per cent, or all in the metric's unit"),
        ({"claims.0": {"type": "gain", "text": "", "metric": "fid", "row": "ema", "over": "raw", "article": "a lot", "tolerance": "1%"}}, "neither a number nor a percentage"),
        ({"claims.0": {"type": "optimum", "text": "", "metric": "fid", "along": ["raw", "ema", "raw"], "article": ["raw"]}}, "'raw' is not inside along"),
        ({"claims.0": {"type": "steps", "text": "", "metric": "fid", "row": "ema", "over": "raw", "article": "-6%", "tolerance": "1%"}}, "target: is missing"),
        ({"seeds": {"first": 100, "looks": [11, 8]}}, "write each number of seeds once, rising"),
        ({"control": "betr"}, "control.claim=betr: there is no such claim; did you mean 'better'?"),
    ],
)  # fmt: skip
def test_mistakes_are_reported_with_file_and_key(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, change)
    assert "some_table.yaml" in str(error.value)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    for text in ("- a\n- list\n", "title: [unclosed\n", ""):
        path.write_text(text)
        with pytest.raises(UserError, match=r"bad\.yaml"):
            spec.read(path)


def test_unknown_table_and_scale() -> None:
    with pytest.raises(UserError, match="did you mean 'ddpm_cifar10'"):
        spec.load("ddpm_cifar")
    with pytest.raises(UserError, match="did you mean 'small'"):
        spec.check_scale("smal")


def test_tables_of_a_task() -> None:
    assert [table.name for table in spec.of_task("ddpm")] == ["ddpm_cifar10"]
    assert spec.of_task("nothing") == []


@pytest.mark.parametrize("table", spec.all_tables(), ids=lambda table: table.name)
def test_planned_seeds_can_decide(table: spec.Table) -> None:
    """Were all seeds to agree, a half of a claim's level would do, beside all other claims: sizes and directions."""
    for scale in ("small", "paper"):
        looks = table.plan(scale).looks
        claims = len(judge(table, scale, {}).families)
        assert required(ALPHA * 0.5, claims, looks)[-1] <= looks[-1], (
            f"{scale}: {claims} claims, {looks[-1]} seeds"
        )
