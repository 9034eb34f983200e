"""From files to verdicts, on results whose truth is known."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from emabench.errors import RunFailed, UserError
from emabench.runs import history as history_file
from emabench.runs.result import DamagedResult
from emabench.tables import gather, spec
from emabench.tables.claims.gain import Gain
from emabench.tables.claims.optimum import Optimum
from emabench.tables.curves import tracks, window_curve, window_curves
from emabench.tables.gather import Run, all_runs, read_run, run_at
from emabench.tables.judge import Judged, judge, survivors
from emabench.tables.verdict import Kind

from . import golden


@pytest.fixture
def ddpm(tmp_path: Path) -> Judged:
    return judge(spec.load("ddpm_cifar10"), "small", golden.diffusion(tmp_path, 12))


def verdicts(judged: Judged) -> dict[str, dict[str, Kind]]:
    return {r.claim.text: {who: v.kind for who, v in r.verdicts.items()} for r in judged.rulings}


def test_the_planted_truth_is_found(ddpm: Judged) -> None:
    found = verdicts(ddpm)
    assert found["FID falls with every larger β"] == {"article": Kind.HOLDS}
    # −71 % was planted: the article says −38 %, the literature −60 to −74 %.
    assert found["How far β = 0.9999 lowers FID"] == {"article": Kind.PARTLY, "literature": Kind.HOLDS}
    assert found["How far β = 0.9999 raises IS"]["article"] is Kind.CANNOT_HOLD
    assert found["FID without averaging"] == {
        "article": Kind.NOT_COMPARABLE,
        "literature": Kind.NOT_COMPARABLE,
    }
    assert ddpm.tally("article") == {Kind.HOLDS: 2, Kind.PARTLY: 1, Kind.CANNOT_HOLD: 1}
    assert len(ddpm.of_paper_scale_alone) == 4


def test_both_arms_of_the_classifier(tmp_path: Path) -> None:
    judged = judge(spec.load("imagenet_resnet50"), "small", golden.classifiers(tmp_path, 12))
    found = verdicts(judged)
    assert found["EMA 0.999 is better than an annealed SGD"] == {
        "article": Kind.NO_EFFECT,
        "literature": Kind.HOLDS,
    }
    assert found["At a constant rate EMA 0.999 is better than SGD"]["literature"] is Kind.HOLDS
    assert judged.rows["swa_constant"].against == "sgd_constant"


def test_rows_are_means_and_paired_differences(ddpm: Judged) -> None:
    runs = [run for run in ddpm.runs["constant"].values() if run]
    ema = np.array([run.value("ema_0.998", "fid") for run in runs])
    raw = np.array([run.value("raw", "fid") for run in runs])
    cell = ddpm.rows["b9999"].cells["fid"]
    assert cell.mean and cell.change and cell.relative
    assert cell.mean.mean == pytest.approx(ema.mean())
    paired = stats.ttest_rel(ema, raw).confidence_interval()
    assert (cell.change.low, cell.change.high) == (pytest.approx(paired.low), pytest.approx(paired.high))
    assert cell.relative.mean == pytest.approx(stats.gmean(ema) / stats.gmean(raw) - 1)
    assert ddpm.rows["none"].cells["fid"].change is None
    assert ddpm.rows["b9999"].window == pytest.approx(500)


def test_a_diverged_run_is_no_number_and_the_worst_outcome(tmp_path: Path) -> None:
    judged = judge(spec.load("ddpm_cifar10"), "small", golden.diffusion(tmp_path, 12, diverged=(1, 4)))
    row = judged.rows["none"]
    assert (row.planned, row.finished, row.diverged, row.missing) == (12, 10, 2, 0)
    assert sorted(row.cells["fid"].values) == [0, 2, 3, *range(5, 12)]
    assert "2 of 12 runs diverged (seed 1, 4); they are excluded from the means" in judged.problems[0]
    # All averages of a run diverge with it: such a seed bears nothing out, and stays among the twelve.
    effect = judged.rulings[1].effects[0]
    assert (len(effect.tested), effect.better, effect.worse) == (12, 10, 0)


def pair(
    better: int,
    worse: int = 0,
    row_lost: int = 0,
    over_lost: int = 0,
    lost: str = "diverged",
    first: int = 100,
) -> Judged:
    """A claim "a is better than b" on so many seeds in which a is better, is worse, or just one has no number."""
    table = spec.Table.model_validate(
        {
            "name": "t", "title": "T", "section": "1", "question": "?", "task": "ddpm", "exact": True,
            "metrics": {"m": {"label": "M", "better": "lower"}},
            "seeds": {"first": 100, "looks": [better + worse + row_lost + over_lost]},
            "arms": {"a": [], "b": []},
            "rows": {key: {"label": key, "arm": key, "average": "raw"} for key in "ab"},
            "claims": [{"type": "difference", "text": "a over b", "metric": "m", "row": "a", "over": "b", "article": "better"}],
        }
    )  # fmt: skip
    seeds = (
        [(1.0, 2.0)] * better + [(2.0, 1.0)] * worse + [(None, 1.0)] * row_lost + [(1.0, None)] * over_lost
    )
    runs: dict[str, dict[int, Run | None]] = {"a": {}, "b": {}}
    for i, values in enumerate(seeds):
        for key, value in zip("ab", values, strict=True):
            status = lost if value is None else "finished"
            result = golden.result({"raw": {"m": value}}, {"m": "lower"}, seed=first + i, status=status)
            runs[key][first + i] = Run(result)
    return judge(table, "small", runs)


@pytest.mark.parametrize("lost", ["diverged", "finished"])
def test_a_seed_without_a_number_counts_as_the_worst(lost: str) -> None:
    """A run that diverges, or finishes without a finite metric: nine seeds better and three so are not twelve better."""
    kind = verdicts(pair(9))["a over b"]["article"]
    assert kind is Kind.HOLDS
    judged = pair(9, row_lost=3, lost=lost)
    assert verdicts(judged)["a over b"]["article"] is Kind.UNDECIDED
    assert judged.problems, "and the page says so"
    assert verdicts(pair(1, row_lost=11, lost=lost))["a over b"]["article"] is Kind.OPPOSITE
    assert verdicts(pair(2, over_lost=10, lost=lost))["a over b"]["article"] is Kind.HOLDS


def test_a_failed_run_makes_the_verdict_wait() -> None:
    judged = pair(9, row_lost=1, lost="failed")
    assert len(judged.rulings[0].seeds) == 9
    assert verdicts(judged)["a over b"]["article"] is Kind.UNDECIDED, "ten were planned"


def test_what_is_outside_the_plan_is_exploratory() -> None:
    assert not pair(9).exploratory
    early = pair(9, first=0)
    assert early.exploratory == ["seeds 0 to 8 are not the planned ones, 100 to 108"]
    assert verdicts(early)["a over b"]["article"] is Kind.HOLDS
    planned = pair(9)
    table = planned.table
    assert judge(table, "small", planned.runs, ["steps=100"]).exploratory == ["steps=100 is not in the plan"]
    assert not judge(table, "small", planned.runs, ["results_dir=elsewhere", "device=cuda"]).exploratory


def test_runs_that_differ_in_code_precision_or_device_are_not_pooled() -> None:
    judged = pair(9)
    for key, value in (
        ("commit", "other"),
        ("torch", "1.0"),
        ("precision", "bf16"),
        ("device", "cuda: H100"),
    ):
        mixed = {"a": dict(judged.runs["a"]), "b": judged.runs["b"]}
        for seed, run in judged.runs["a"].items():
            assert run
            environment = {**run.result.environment, key: value}
            mixed["a"][seed] = Run(replace(run.result, environment=environment))
        name = {"commit": "code", "torch": "code"}.get(key, key)
        apart = judge(judged.table, "small", mixed)
        verdict = apart.rulings[0].verdicts["article"]
        assert verdict.kind is Kind.NOT_COMPARABLE and f"the runs differ in {name}" in verdict.why
        assert f"pool={name}" in verdict.why
        together = judge(judged.table, "small", mixed, pool=[name])
        assert verdicts(together)["a over b"]["article"] is Kind.HOLDS
        half = {"a": judged.runs["a"], "b": {**judged.runs["b"], 100: mixed["a"][100]}}
        assert judge(judged.table, "small", half).rows["b"].cells["m"].mean is None, "nor are they averaged"


def test_several_tables_have_one_error_rate() -> None:
    """Eight seeds that agree decide one table of a claim, and beside nineteen others they do not."""
    several = survivors([pair(8)] * 20)
    assert all(judged.rulings[0].verdicts["article"].kind is Kind.HOLDS for judged in several)
    assert not any(judged.rulings[0].verdicts["article"].overview for judged in several)
    assert survivors([pair(8)])[0].rulings[0].verdicts["article"].overview
    assert survivors([pair(12)] * 20)[0].rulings[0].verdicts["article"].overview


def test_an_overview_marks_what_is_planned_and_in_the_same_words() -> None:
    """The size that one table shows may be open beside a hundred others; what is exploratory is never marked."""
    assert not survivors([pair(12, first=0)])[0].rulings[0].verdicts["article"].overview, "pilot seeds"
    planned = pair(12)
    late = replace(planned, rulings=[replace(planned.rulings[0], after_data=True)])
    assert not survivors([late])[0].rulings[0].verdicts["article"].overview, "chosen after seeing data"
    gain = {
        "type": "gain", "text": "g", "metric": "m", "row": "a", "over": "b", "article": "-10%", "tolerance": "1%",
    }  # fmt: skip
    table = planned.table.model_copy(update={"claims": [Gain.model_validate(gain)]})
    judged = judge(table, "small", planned.runs)  # a change of −50 %
    assert judged.rulings[0].verdicts["article"].part == "direction seen, larger"
    assert survivors([judged] * 20)[0].rulings[0].verdicts["article"].overview
    assert not survivors([judged] * 120)[0].rulings[0].verdicts["article"].overview, "there the size is open"


def test_sizes_in_unlike_units_are_not_compared() -> None:
    judged = pair(9)
    metrics = {
        "m": judged.table.metrics["m"].model_copy(
            update={"unit": {"small": "per character", "paper": "per word"}}
        )
    }
    gain = {
        "type": "gain",
        "text": "g",
        "metric": "m",
        "row": "a",
        "over": "b",
        "article": "-50%",
        "tolerance": "5%",
    }
    claims = [*judged.table.claims, Gain.model_validate(gain)]
    table = judged.table.model_copy(update={"metrics": metrics, "claims": claims})
    kinds = verdicts(judge(table, "small", judged.runs))
    assert kinds["a over b"]["article"] is Kind.HOLDS, "better is better in any unit"
    assert kinds["g"]["article"] is Kind.NOT_COMPARABLE


def test_missing_runs_and_no_runs(tmp_path: Path) -> None:
    table = spec.load("ddpm_cifar10")
    nothing = judge(table, "small", {"constant": {100: None, 101: None}})
    assert set(nothing.tally("literature")) == {Kind.NOT_RUN}
    assert set(nothing.tally("article")) == {Kind.NOT_RUN, Kind.CANNOT_HOLD}
    assert nothing.rows["none"].missing == 2
    some = dict(golden.diffusion(tmp_path, 5)["constant"])
    some[3] = None
    judged = judge(table, "small", {"constant": some})
    assert judged.seeds == 4
    assert judged.rows["none"].missing == 1
    assert judged.rulings[0].seeds == [0, 1, 2], "seeds count in their order, up to the first that is missing"


def test_an_arm_that_is_not_run_leaves_its_claims_open(tmp_path: Path) -> None:
    runs = golden.classifiers(tmp_path, 12)
    judged = judge(spec.load("imagenet_resnet50"), "small", {**runs, "constant": {0: None}})
    found = verdicts(judged)
    assert found["At a constant rate EMA 0.999 is better than SGD"]["literature"] is Kind.NOT_RUN
    assert found["EMA 0.999 is better than an annealed SGD"]["literature"] is Kind.HOLDS


def test_values_measured_differently_are_never_set_side_by_side(tmp_path: Path) -> None:
    runs = golden.diffusion(tmp_path, 6)["constant"]
    other = runs[2]
    assert other
    path = other.path / "result.json" if other.path else Path()
    data = json.loads(path.read_text())
    data["measured_with"]["fid"] = "inception-v3, 50000 samples"
    path.write_text(json.dumps(data))
    judged = judge(spec.load("ddpm_cifar10"), "small", {"constant": {**runs, 2: read_run(path.parent)}})
    found = verdicts(judged)
    assert found["FID falls with every larger β"]["article"] is Kind.NOT_COMPARABLE
    assert found["IS rises with every larger β"]["article"] is not Kind.NOT_COMPARABLE, (
        "IS was measured alike"
    )
    assert judged.rows["none"].cells["fid"].mean is None
    assert "1 with inception-v3, 50000 samples" in judged.problems[0]
    assert window_curve(judged, "constant", "fid") is None


def paper(measured_with: dict[str, str], n: int = 12) -> dict[str, dict[int, Run | None]]:
    rng = np.random.default_rng(0)
    runs: dict[int, Run | None] = {}
    for seed in range(n):
        fid = {"raw": 8.06, "ema_0.99": 5.0, "ema_0.999": 3.6, "ema_0.9999": 3.2}
        values = {
            a: {"fid": v * math.exp(rng.normal(0, 0.005)), "is": 9.0 + rng.normal(0, 0.01)}
            for a, v in fid.items()
        }
        runs[seed] = Run(
            golden.result(
                values,
                {"fid": "lower", "is": "higher"},
                scale="paper",
                seed=seed,
                measured_with=measured_with,
            )
        )
    return {"constant": runs}


def test_values_at_paper_scale_need_the_published_protocol() -> None:
    table = spec.load("ddpm_cifar10").model_copy(
        update={"measured_with": {"fid": "inception-v3, 50000 samples"}}
    )
    same = verdicts(judge(table, "paper", paper({"fid": "inception-v3, 50000 samples"})))
    assert same["FID without averaging"] == {"article": Kind.FAILS, "literature": Kind.HOLDS}
    assert same["FID with β = 0.9999"] == {"article": Kind.HOLDS, "literature": Kind.HOLDS}
    judged = judge(table, "paper", paper({"fid": "inception-v3, 5000 samples"}))
    assert verdicts(judged)["FID with β = 0.9999"]["article"] is Kind.NOT_COMPARABLE
    assert "5000 samples; the published values with inception-v3, 50000" in judged.comparable("fid")


def test_steps_to_target(tmp_path: Path) -> None:
    """EMA reaches the target at half of the steps that SGD takes; one seed of SGD never does."""
    pair_of = {"type": "steps", "metric": "top1", "row": "ema", "over": "sgd"}
    table = spec.Table.model_validate(
        {
            "name": "t", "title": "T", "section": "17.3", "question": "?", "task": "ddpm",
            "seeds": {"first": 0, "looks": [9]},
            "metrics": {"top1": {"label": "top-1", "better": "higher"}},
            "arms": {"only": []},
            "rows": {"sgd": {"label": "SGD", "arm": "only", "average": "raw"}, "ema": {"label": "EMA", "arm": "only", "average": "ema_0.99"}},
            "claims": [
                {**pair_of, "text": "sooner", "target": 80.0, "article": "-50%", "tolerance": "20%"},
                {**pair_of, "text": "not sooner", "target": 80.0, "article": "+50%", "tolerance": "20%"},
            ],
        }
    )  # fmt: skip
    runs: dict[int, Run | None] = {}
    for seed in range(9):
        reached = 800 + 40 * seed
        history = [
            {
                "step": step,
                "eval": {
                    "raw": {"top1": 81.0 if step >= reached and seed != 5 else 70.0},
                    "ema_0.99": {"top1": 81.0 if step >= reached / 2 else 70.0},
                },
            }
            for step in range(20, 2000, 20)
        ]
        last = {"raw": {"top1": 79.0 if seed == 5 else 81.0}, "ema_0.99": {"top1": 81.0}}
        found = golden.result(last, {"top1": "higher"}, seed=seed, steps=2000)
        runs[seed] = golden.write(tmp_path, found, {"seed": seed}, history, pictures=False)
    judged = judge(table, "small", {"only": runs})
    first, second = judged.rulings
    # Half the steps in eight seeds; in the ninth SGD never gets there, which is beyond any band.
    assert first.verdicts["article"].kind in (Kind.HOLDS, Kind.PARTLY)
    assert first.effects[0].tested[5] == -math.inf and first.effects[0].better == 9
    assert "in 1 of 9 seeds one or both never reached it" in first.effects[0].what
    assert math.expm1(first.effects[0].tested[0]) == pytest.approx(-0.5, abs=0.02)
    assert second.verdicts["article"].kind is Kind.OPPOSITE
    hard = table.model_copy(update={"claims": [table.claims[0].model_copy(update={"target": 90.0})]})
    neither = judge(hard, "small", {"only": runs}).rulings[0]
    assert neither.verdicts["article"].kind is Kind.UNDECIDED and neither.effects[0].better == 0
    # Nor is it judged by a history that is not the one that the run wrote.
    damaged = runs[4]
    assert damaged and damaged.path
    file = damaged.path / "history.jsonl"
    sealed = replace(
        damaged.result, environment={**damaged.result.environment, "history": history_file.seal(file)}
    )
    whole = file.read_bytes()
    for data, problem in (
        (whole, ""),
        (
            whole.replace(b'"top1": 81.0', b'"top1": 91.0', 1),
            "history.jsonl has changed since the run finished",
        ),
        (whole.replace(b'"step"', b'"rtep"', 1), "history.jsonl has lost 1 of its 99 lines"),
        (bytes(len(whole)), "history.jsonl has lost 99 of its 99 lines"),
        (None, "history.jsonl is missing"),
    ):
        file.unlink(missing_ok=True)
        if data is not None:
            file.write_bytes(data)
        again = judge(table, "small", {"only": {**runs, 4: Run(sealed, damaged.path)}})
        assert bool(again.problems) == bool(problem) and problem in "".join(again.problems)
        verdict = again.rulings[0].verdicts["article"]
        assert (verdict.kind is Kind.NOT_COMPARABLE) == bool(problem)
        assert not problem or f"seed 4: {problem}" in verdict.why
        last = tracks(again, "only", "top1")[0].points[-1][1]
        assert last.n == (8 if problem else 9)
    file.write_bytes(whole)
    # Without measurements along the way there is nothing to compare.
    bare: dict[int, Run | None] = {seed: Run(run.result) for seed, run in runs.items() if run}
    found_bare = judge(table, "small", {"only": bare}).rulings[0].verdicts["article"]
    assert found_bare.kind is Kind.NOT_COMPARABLE
    assert "evaluate.every" in found_bare.why
    # Nor where a row is past the target when it is measured for the first time: ties that say nothing.
    [easy, _] = table.claims
    low = table.model_copy(update={"claims": [easy.model_copy(update={"target": 60.0})]})
    too_late = judge(low, "small", {"only": runs}).rulings[0].verdicts["article"]
    assert too_late.kind is Kind.NOT_COMPARABLE
    assert "EMA is past the target of 60 when first measured" in too_late.why


def test_a_run_of_another_task_or_direction_is_a_fault() -> None:
    table = spec.load("ddpm_cifar10")
    wrong = Run(golden.result({"raw": {"fid": 1.0}}, {"fid": "lower"}, task="classification"))
    with pytest.raises(ValueError, match="classification"):
        judge(table, "small", {"constant": {0: wrong}})
    turned = Run(golden.result({"raw": {"fid": 1.0}}, {"fid": "higher"}))
    with pytest.raises(DamagedResult, match="better higher"):
        judge(table, "small", {"constant": {0: turned}})


# -- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace('"schema": 1', '"schema": 2'),
        lambda text: text.replace('"finished"', '"perfect"'),
        lambda text: "[1, 2]",
        lambda text: text.replace('"raw"', '"raw", "extra": 1', 1),
        lambda text: text.replace('"fid": ', '"fid": -1e308, "fid_was": ', 1),
    ],
)
def test_a_damaged_result_is_named_and_set_aside(tmp_path: Path, damage: object) -> None:
    runs = [run for run in golden.diffusion(tmp_path, 3)["constant"].values() if run and run.path]
    path = runs[1].path
    assert path
    file = path / "result.json"
    file.write_text(damage(file.read_text()))  # type: ignore[operator]
    with pytest.raises(DamagedResult, match=r"result\.json"):
        read_run(path)
    there, unreadable = all_runs(tmp_path)
    assert [run.result.seed for run in there] == [0, 2]
    assert len(unreadable) == 1 and str(file) in unreadable[0]
    with pytest.raises(RunFailed, match="rerun=true"):
        run_at(path)


@pytest.mark.parametrize("edit", ['"seed": 7', '"scale": "paper"'])
def test_a_result_that_is_not_its_directorys_is_set_aside(tmp_path: Path, edit: str) -> None:
    runs = [run for run in golden.diffusion(tmp_path, 2)["constant"].values() if run and run.path]
    assert runs[1].path
    file = runs[1].path / "result.json"
    key = edit.split(":")[0]
    file.write_text(re.sub(key + r": [^,]+", edit, file.read_text(), count=1))
    there, unreadable = all_runs(tmp_path)
    assert len(there) == 1 and str(file) in unreadable[0]


def test_a_result_that_is_a_directory_is_set_aside(tmp_path: Path) -> None:
    runs = [run for run in golden.diffusion(tmp_path, 2)["constant"].values() if run and run.path]
    assert runs[1].path
    (runs[1].path / "result.json").unlink()
    (runs[1].path / "result.json").mkdir()
    there, unreadable = all_runs(tmp_path)
    assert len(there) == 1 and "cannot be read" in unreadable[0]


def test_what_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        run_at(tmp_path / "nowhere")
    (tmp_path / "unfinished").mkdir()
    assert read_run(tmp_path / "unfinished") is None
    with pytest.raises(UserError, match=r"no result\.json yet"):
        run_at(tmp_path / "unfinished")


def test_a_run_reads_its_files(tmp_path: Path) -> None:
    run = golden.diffusion(tmp_path, 1)["constant"][0]
    assert run and run.path
    assert run_at(run.path / "result.json").result == run.result
    assert run.config["steps"] == 5000
    assert [step for step, _ in run.measured("raw", "fid")] == list(range(500, 5001, 500))
    assert run.measured("raw", "fid")[-1][1] == run.value("raw", "fid")
    assert len(run.losses()) == 50
    picture = run.picture("ema_0.9")
    assert picture and picture.name == "samples.png"
    assert run.picture("ema_0.5") is None
    assert run.window("raw") == 1.0
    assert run.value("ema_0.5", "fid") is None
    alone = gather.Run(run.result)
    assert (alone.config, alone.losses(), alone.picture("raw")) == ({}, [], None)


# -- curves ----------------------------------------------------------------------------------------------------


def test_the_window_curve_finds_the_planted_optimum(ddpm: Judged) -> None:
    curve = window_curve(ddpm, "constant", "fid")
    assert curve and curve.best and curve.raw
    assert curve.best.average == "ema_0.998"
    assert [round(point.window) for point in curve.points] == [10, 100, 200, 500, 1000]
    assert [point.average for point in curve.points if point.tied] == ["ema_0.998"]
    assert curve.best.rows == ("β = 0.9999",)
    assert curve.raw.mean > 10 and curve.ahead and curve.ahead_in == (12, 12)


def test_no_average_is_best_where_raw_is() -> None:
    table = spec.load("ddpm_cifar10")
    values = {
        "raw": {"fid": 1.0, "is": 9.0},
        "ema_0.9": {"fid": 2.0, "is": 8.0},
        "ema_0.99": {"fid": 3.0, "is": 7.0},
    }
    runs: dict[int, Run | None] = {0: Run(golden.result(values, {"fid": "lower", "is": "higher"}))}
    curve = window_curve(judge(table, "small", {"constant": runs}), "constant", "is")
    assert curve and curve.best is None


def test_learning_curves_end_at_the_result(ddpm: Judged) -> None:
    found = {track.average: track for track in tracks(ddpm, "constant", "fid")}
    assert list(found) == ["raw", "ema_0.9", "ema_0.99", "ema_0.998"]
    step, last = found["ema_0.998"].points[-1]
    mean = ddpm.rows["b9999"].cells["fid"].mean
    assert step == 5000 and mean and last.mean == pytest.approx(mean.mean)
    assert last.n == 12


def test_rows_that_are_trajectories_of_their_own() -> None:
    table, runs = golden.target_networks()
    judged = judge(table, "small", runs)
    assert verdicts(judged)["best inside"]["article"] is Kind.HOLDS
    change = judged.rows["m99"].cells["top1"].change
    assert change and change.mean == pytest.approx(18, abs=0.3) and change.n == 8
    (curve,) = window_curves(judged, "top1")
    assert [round(point.window) for point in curve.points] == [10, 100, 1000]
    assert (
        curve.best
        and curve.best.average == "m99"
        and curve.raw
        and curve.raw.mean == pytest.approx(60, abs=3)
    )
    # The seeds differ by 2, the rows within a seed by 0.2: only pairing tells them apart.
    assert [point.tied for point in curve.points] == [False, True, False]


def test_the_best_row_is_held_to_the_rules_of_the_verdicts() -> None:
    """A seed that diverges counts as the worst, runs of other code are not pooled, and there is no look before the planned."""

    def ahead(runs: dict[str, dict[int, Run | None]]) -> list[bool]:
        return [curve.ahead for curve in window_curves(judge(table, "small", runs), "top1")]

    table, runs = golden.target_networks()
    assert ahead(runs) == [True]
    best = runs["m99"][3]
    assert best
    diverged = Run(replace(best.result, status="diverged"))
    assert ahead(runs | {"m99": runs["m99"] | {3: diverged}}) == [False]
    assert ahead({arm: by | {7: None} for arm, by in runs.items()}) == [False], "seven of the eight planned"
    other = {
        seed: Run(replace(run.result, environment={**run.result.environment, "commit": "other"}))
        for seed, run in runs["m99"].items()
        if run
    }
    assert ahead(runs | {"m99": other}) == []


def test_one_of_several_named_rows_need_not_beat_the_others() -> None:
    """ "The best decay is 0.9 or 0.99": as good as each other, both are better than all that are not named."""
    table, runs = golden.target_networks()
    claim = {
        "type": "optimum",
        "text": "one of two",
        "metric": "top1",
        "along": list(table.rows),
        "article": ["m9", "m99"],
    }
    table = table.model_copy(update={"claims": [Optimum.model_validate(claim)]})
    for seed in range(8):
        for key in ("m9", "m99"):
            value = 80.0 + (seed % 2 if key == "m9" else (seed + 1) % 2)
            result = golden.result({"raw": {"top1": value}}, {"top1": "higher"}, task="moco", seed=seed)
            runs[key][seed] = Run(result)
    assert verdicts(judge(table, "small", runs))["one of two"]["article"] is Kind.HOLDS


def test_decays_against_different_rows_are_curves_of_their_own() -> None:
    """Two families of targets, each with its own row without averaging: a line must not jump between them."""
    table, runs = golden.target_networks()
    rows = dict(table.rows)
    rows["other"] = rows["none"].model_copy(update={"label": "other", "arm": "other"})
    rows["m999"] = rows["m999"].model_copy(update={"against": "other"})
    rows["m9"] = rows["m9"].model_copy(update={"against": "other"})
    table = table.model_copy(update={"rows": rows, "arms": table.arms | {"other": []}})
    judged = judge(table, "small", runs | {"other": runs["none"]})
    found = {curve.family: [p.average for p in curve.points] for curve in window_curves(judged, "top1")}
    assert found == {"against other": ["m9", "m999"]}  # m99 is alone: a point is no curve


@pytest.mark.parametrize(
    ("clipped", "free", "expected"),
    [
        (0, 6, Kind.HOLDS),  # McNemar, a side: 1/64
        (0, 5, Kind.UNDECIDED),  # 1/32 at half of 5 %
        (6, 0, Kind.OPPOSITE),
        (0, 0, Kind.UNDECIDED),
    ],
)
def test_shares_of_diverged_runs(clipped: int, free: int, expected: Kind) -> None:
    table = spec.Table.model_validate(
        {
            "name": "t", "title": "T", "section": "17.1", "question": "?", "task": "lstm", "seeds": {"first": 0, "looks": [6]},
            "metrics": {"perplexity": {"label": "PPL", "better": "lower"}},
            "arms": {"clipped": [], "free": []},
            "rows": {key: {"label": key, "arm": key, "average": "raw"} for key in ("clipped", "free")},
            "claims": [
                {"type": "diverged", "text": "clipping keeps runs alive", "metric": "perplexity",
                 "row": "clipped", "over": "free", "article": "fewer"},
            ],
        }
    )  # fmt: skip
    runs: dict[str, dict[int, Run | None]] = {
        arm: {
            seed: Run(
                golden.result(
                    {"raw": {"perplexity": None if seed < lost else 3.0}},
                    {"perplexity": "lower"},
                    task="lstm",
                    seed=seed,
                    status="diverged" if seed < lost else "finished",
                )
            )
            for seed in range(6)
        }
        for arm, lost in (("clipped", clipped), ("free", free))
    }
    judged = judge(table, "small", runs)
    assert verdicts(judged)["clipping keeps runs alive"]["article"] is expected
    (ruling,) = judged.rulings
    assert ruling.effects[0].what == f"{clipped} of 6 runs diverged, {free} of 6 of free"
