"""The schedule's values, and steps that match a loop written by hand."""

from __future__ import annotations

import math

import pytest
import torch

from emabench.config import ScheduleConfig
from emabench.training.optimizer import ScheduledOptimizer
from emabench.training.schedule import factor
from tests.test_config import config


def schedule(name: str, **values: object) -> ScheduleConfig:
    base = {"name": name, "warmup": 0, "final": 0.0, "milestones": [], "factor": 0.1}
    return ScheduleConfig.model_validate(base | values)


def test_schedules() -> None:
    assert [factor(schedule("constant", warmup=4), s, 10) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factor(schedule("cosine"), 9, 10) == pytest.approx(0.0)
    assert factor(schedule("cosine", final=0.05), 9, 10) == pytest.approx(0.05)
    assert factor(schedule("cosine"), 4, 10) == pytest.approx((1 + math.cos(math.pi * 0.5)) / 2)
    assert factor(schedule("linear", warmup=2), 5, 10) == pytest.approx(0.5)
    steps = [factor(schedule("step", milestones=[1 / 3, 2 / 3]), s, 90) for s in (29, 30, 59, 60)]
    assert steps == pytest.approx([1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_steps_match_a_loop_written_by_hand(name: str) -> None:
    run = config(
        f"optimizer.name={name}", "optimizer.lr=0.01", "optimizer.weight_decay=0.1", "clip.max_norm=0.5",
        "schedule.name=cosine", "steps=8",
    )  # fmt: skip
    torch.manual_seed(0)
    weight, x = torch.randn(3, 3), torch.randn(8, 3)
    ours, theirs = torch.nn.Parameter(weight.clone()), torch.nn.Parameter(weight.clone())
    optimizer = ScheduledOptimizer([ours], run, torch.device("cpu"))
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    extra = {"momentum": run.optimizer.momentum} if name == "sgd" else {"betas": tuple(run.optimizer.betas)}
    reference = kinds[name]([theirs], lr=0.01, weight_decay=0.1, **extra)
    for step in range(8):
        norm = optimizer.step((x @ ours).square().mean(), step)
        reference.zero_grad()
        (x @ theirs).square().mean().backward()
        expected = torch.nn.utils.clip_grad_norm_([theirs], 0.5)
        reference.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * (step + 1) / 8)) / 2
        reference.step()
        assert norm == expected
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert not torch.equal(ours, weight)


def half_sum(weight: torch.nn.Parameter, factor: float) -> torch.Tensor:
    """A loss whose gradient passes through float16, where `factor` times the scale may be infinite."""
    return weight.half().float().sum() * factor


def test_a_step_whose_loss_scale_overflows_is_left_out_and_not_taken_for_divergence() -> None:
    run = config(
        "precision=fp16",
        "supports.precision=[fp16]",
        "clip.max_norm=1",
        "optimizer.name=sgd",
        "optimizer.lr=0.5",
        "steps=9",
    )
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = ScheduledOptimizer([weight], run, torch.device("cpu"))
    seen = []
    for step in range(3):
        norm = optimizer.step(half_sum(weight, 1.5), step)
        assert norm is not None
        seen.append((float(norm), float(weight.detach())))
    assert seen[0] == (0.0, 1.0)  # 1.5 · 65536 is infinite in float16
    assert seen[1][0] == pytest.approx(1.5)
    assert seen[1][1] < 1.0


def test_a_gradient_that_is_infinite_at_any_scale_is_divergence() -> None:
    run = config(
        "precision=fp16", "supports.precision=[fp16]", "clip.max_norm=1", "optimizer.name=sgd", "steps=99"
    )
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = ScheduledOptimizer([weight], run, torch.device("cpu"))
    norms = [float(optimizer.step(half_sum(weight, math.inf), step)) for step in range(20)]
    assert not math.isfinite(norms[-1])
