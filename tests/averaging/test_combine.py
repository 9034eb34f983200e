"""Mixtures, the greedy choice, post-hoc synthesis, Lookahead, and the measured rounding errors."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from emabench.averaging import EMA, Averager, Lookahead, Mean, Mixture, PowerEMA, from_dict, greedy
from emabench.averaging import numerics as numbers
from emabench.averaging.posthoc import PoorFit, Snapshot, fit, rebuild, synthesise

from .support import walk


def test_a_mixture_is_the_weighted_sum(model):
    mixed = Mixture(of={"fast": 0.3, "slow": 0.5, "raw": 0.2})
    averager = Averager(model, {"fast": EMA(decay=0.5), "slow": EMA(decay=0.9), "mixed": mixed})
    for step in range(3):
        walk(model, step)
        averager.update()
    parts = [averager.export(n)["first.weight"] * w for n, w in mixed.of.items()]
    assert torch.allclose(averager.export("mixed")["first.weight"], sum(parts), atol=1e-6)
    with averager.applied(Mixture(of={"fast": 2.0, "raw": -1.0})):
        inside = model.first.weight.detach().clone()
    assert torch.allclose(inside, 2 * averager.export("fast")["first.weight"] - model.first.weight, atol=1e-5)
    assert from_dict(mixed.to_dict()) == mixed


def test_mixtures_that_make_no_sense_are_named(model):
    with pytest.raises(ValueError, match=r"sum to 0\.8"):
        Mixture(of={"a": 0.3, "b": 0.5})
    with pytest.raises(ValueError, match=r"of=\{\}"):
        Mixture()
    with pytest.raises(ValueError, match="'m' mixes 'fats', which is no average to mix; did you mean 'fast'"):
        Averager(model, {"fast": EMA(decay=0.5), "m": Mixture(of={"fats": 1.0})})
    with pytest.raises(ValueError, match=r"Averager.weights"):
        Mixture(of={"a": 1.0}).weights(3)


def test_the_greedy_choice_only_adds_what_helps():
    model = nn.Linear(1, 1, bias=False)
    averager = Averager(model, {"low": EMA(decay=0.9), "mean": Mean(), "high": EMA(decay=0.0)})
    for value in (1.0, 2.0, 3.0):
        with torch.no_grad():
            model.weight.fill_(value)
        averager.update()
    seen = {n: float(averager.export(n)["weight"]) for n in averager.names}
    target = (seen["mean"] + seen["high"]) / 2
    chosen = greedy(averager, lambda: abs(model.weight.item() - target), higher=False, names=averager.names)
    assert dict(chosen.of) == {"mean": 0.5, "high": 0.5}
    best = greedy(averager, lambda: math.nan if model.weight.item() < 2.9 else 1.0, names=averager.names)
    assert dict(best.of) == {"high": 1.0}


def test_synthesis_rebuilds_an_average_that_was_not_kept():
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    kept = {"a": PowerEMA(sigma_rel=0.05, every=5), "b": PowerEMA(sigma_rel=0.1, every=5)}
    wanted = {"power": PowerEMA(sigma_rel=0.15), "ema": EMA(decay=0.99), "mean": Mean(start=1000)}
    averager = Averager(model, {**kept, **wanted})
    snapshots, states = [], []
    for step in range(1, 2001):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.999).add_(torch.randn_like(p), alpha=0.01)
        averager.update()
        if step % 100 == 0:
            snapshots += [Snapshot(profile, step) for profile in kept.values()]
            states += [averager.export(name) for name in kept]
    for name, profile in wanted.items():
        state, made = rebuild(snapshots, iter(states), profile)
        exact = averager.export(name)
        error = max(float((state[k] - exact[k]).norm() / exact[k].norm()) for k in exact)
        assert error < 0.05, (name, error)
        assert made.error(1000) < 0.05  # what it expects of weights with this correlation time
        assert made.realised.sum() == pytest.approx(1)
    assert fit(snapshots, EMA(decay=0.5)).residual > 0.5  # and it says when it cannot
    exactly = fit(snapshots, kept["b"])
    assert exactly.residual < 1e-6
    assert exactly.moved < 1e-6
    assert exactly.shift < 1e-3


@pytest.mark.parametrize(
    ("every", "correlation_time"), [(1, 1), (8, 200), (100, 2000), (100, 200), (100, 20), (100, 1)]
)
def test_a_fit_states_the_error_of_weights_of_a_named_smoothness(every, correlation_time):
    """Stationary AR(1) weights, many of them: the root mean square error is what `Fit.error` expects."""
    T, rng = 3000, np.random.default_rng(0)
    rho = 1 - 1 / correlation_time
    theta = rng.normal(size=(T + 1, 300))
    for t in range(1, T + 1):
        theta[t] = rho * theta[t - 1] + (1 - rho**2) ** 0.5 * theta[t]
    snapshots = [
        Snapshot(PowerEMA(sigma_rel=s, every=every), t) for t in range(500, T + 1, 500) for s in (0.05, 0.1)
    ]
    wanted = PowerEMA(sigma_rel=0.15)
    best = fit(snapshots, wanted)
    kept = [s.profile.weights(s.step) @ theta[: s.step + 1] for s in snapshots]
    got, exact = best.coefficients @ np.stack(kept), wanted.weights(T) @ theta
    actual = np.sqrt(((got - exact) ** 2).mean() / (exact**2).mean())
    assert best.error(correlation_time) == pytest.approx(actual, rel=0.15)
    longest = np.linalg.norm(np.diff(theta, axis=0), axis=1).max()
    assert np.linalg.norm(got - exact) <= best.shift * longest
    if every > 1:
        assert best.residual > 1  # spikes are not the wanted profile, however well their cells fit


def test_a_poor_fit_is_refused_before_a_state_is_read():
    snapshots = [Snapshot(PowerEMA(sigma_rel=0.1, every=100), t) for t in (1000, 2000)]
    with pytest.raises(PoorFit, match=r"correlation time of 5 steps, above 0\.1: take snapshots more often"):
        rebuild(snapshots, iter(()), PowerEMA(sigma_rel=0.15), tolerance=0.1, correlation_time=5)
    with pytest.raises(ValueError, match=r"correlation_time=0\.5: give a number of steps"):
        fit(snapshots, Mean()).error(0.5)


def test_the_fit_is_least_squares():
    snapshots = [Snapshot(EMA(decay=b), 30) for b in (0.5, 0.8, 0.95)]
    wanted = EMA(decay=0.9)
    best = fit(snapshots, wanted)
    columns = np.column_stack([s.profile.weights(30) for s in snapshots])
    error = np.linalg.norm(columns @ best.coefficients - wanted.weights(30))
    for nudge in ([1e-3, -1e-3, 0], [0, 1e-3, -1e-3], [1e-3, 1e-3, -2e-3]):
        for sign in (1, -1):
            x = best.coefficients + sign * np.array(nudge)
            assert np.linalg.norm(columns @ x - wanted.weights(30)) > error


def test_synthesis_mistakes_are_named():
    with pytest.raises(ValueError, match="no snapshot at or before step 3"):
        fit([Snapshot(Mean(), 5)], Mean(), 3)
    with pytest.raises(ValueError, match="2 coefficients for 1 states"):
        synthesise([0.5, 0.5], [{"w": torch.ones(1)}])
    with pytest.raises(ValueError, match=r"states differ in \['v'\]"):
        synthesise([0.5, 0.5], [{"w": torch.ones(1)}, {"v": torch.ones(1), "w": torch.ones(1)}])


def quadratic(optimizer_of):
    torch.manual_seed(0)
    p = nn.Parameter(torch.tensor([4.0, -2.0]))
    return p, optimizer_of([p])


def descend(p, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        p.square().sum().backward()
        optimizer.step()


def test_lookahead_resets_the_fast_weights():
    p, optimizer = quadratic(lambda ps: Lookahead(torch.optim.SGD(ps, lr=0.1), k=2, alpha=0.25))
    descend(p, optimizer, 1)
    assert torch.allclose(p, 0.8 * torch.tensor([4.0, -2.0]))
    with optimizer.slow_applied():
        assert torch.equal(p, torch.tensor([4.0, -2.0]))
    descend(p, optimizer, 1)
    once = 1 + 0.25 * (0.64 - 1)
    assert torch.allclose(p, once * torch.tensor([4.0, -2.0]))
    descend(p, optimizer, 2)
    assert torch.allclose(p, once**2 * torch.tensor([4.0, -2.0]))


def test_lookahead_works_with_schedulers_averages_and_resume(model):
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), k=3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    averager = Averager(model, {"ema": EMA(decay=0.5)})
    averager.attach(optimizer)

    def step(m, o, s):
        torch.manual_seed(o.steps)
        o.zero_grad()
        m(torch.randn(8, 4)).square().mean().backward()
        o.step()
        s.step()

    for _ in range(4):
        step(model, optimizer, scheduler)
    assert averager.updates == 4
    assert optimizer.optimizer.param_groups[0]["lr"] == 0.1 * 0.25
    with averager.applied("ema"), pytest.raises(RuntimeError, match="optimiser step while"):
        optimizer.step()
    twin = copy.deepcopy(model)
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    other = Lookahead(torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9), k=3)
    other_scheduler = torch.optim.lr_scheduler.StepLR(other, 2, 0.5)
    other.load_state_dict(saved[0])
    other_scheduler.load_state_dict(saved[1])
    for _ in range(4):
        step(model, optimizer, scheduler)
        step(twin, other, other_scheduler)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_deep_copy_of_lookahead_goes_on_by_itself():
    p, optimizer = quadratic(lambda ps: Lookahead(torch.optim.SGD(ps, lr=0.1, momentum=0.9), k=2, alpha=0.25))
    descend(p, optimizer, 3)
    q, other = copy.deepcopy((p, optimizer))
    descend(q, other, 3)
    assert not torch.equal(p, q)
    descend(p, optimizer, 3)
    assert torch.equal(p, q)


def test_lookahead_mistakes_are_named():
    p = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="k=0"):
        Lookahead(torch.optim.SGD([p], lr=0.1), k=0)
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        Lookahead(torch.optim.SGD([p], lr=0.1), alpha=1.5)
    other = Lookahead(torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1))
    with pytest.raises(ValueError, match="do not fit"):
        other.load_state_dict(Lookahead(torch.optim.SGD([p], lr=0.1)).state_dict())


def test_rounding_errors_are_ordered_and_saturate():
    rows = numbers.measure(types=("float32",), decays=(0.9, 0.999), lengths=(1000, 3000), size=64)
    assert len(rows) == 12
    at = {(r["form"], r["decay"], r["steps"]): r for r in rows}
    for beta in (0.9, 0.999):
        plain, lerp, kahan = (at[form, beta, 3000]["error"] for form in numbers.FORMS)
        assert plain > 2 * lerp > 2 * kahan
        assert kahan < 2**-24
    assert at["plain", 0.9, 3000]["error"] < 1.5 * at["plain", 0.9, 1000]["error"]  # no growth with √T
    assert at["lerp", 0.9, 1000]["article"] == pytest.approx(math.sqrt(1000) * 2**-24 / 0.1)
    half = numbers.measure(
        types=("bfloat16",), decays=(0.9999,), lengths=(1000,), size=64, forms=("lerp", "kahan")
    )
    assert half[0]["error_of_path"] > 0.9  # stalled
