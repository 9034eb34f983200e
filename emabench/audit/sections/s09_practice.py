"""§9: advice on β, the PyTorch class, and common mistakes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from emabench.audit.sections.listings import EMA_CLASS, EMA_CLASS_RIGHT, EMA_USE, executed
from emabench.audit.statement import (
    CONDITIONAL,
    EMPIRICAL,
    HOLDS,
    WRONG,
    Effort,
    Form,
    Outcome,
    conditional,
    reported,
    statement,
    truth,
)
from emabench.audit.tools import Quadratic, ema, ema_weights, number, percent

if TYPE_CHECKING:
    from torch import nn

BY_TASK = {
    "classification": (0.99, 0.999),
    "detection": (0.9999, 0.9999),
    "generative": (0.9999, 0.99999),
    "rl": (0.995, 0.999),
}
BY_LENGTH = {
    (1, 10): (0.9, 0.95),
    (10, 100): (0.99, 0.999),
    (100, 1000): (0.999, 0.9999),
}  # epochs: range of β
RECIPES = {
    "DDPM": (0.9999, 800_000),
    "YOLOv5": (0.9999, 554_000),
    "Mean Teacher": (0.999, 150_000),
    "torchvision": (1 - 1 / 29_300, 750_000),
}


@statement(
    "9.1-task",
    section="9.1",
    says="β by task: classification 0.99–0.999, detection 0.9999, generative models 0.9999–0.99999, reinforcement learning 0.995–0.999.",
    verdict=EMPIRICAL,
    method="against the article's own tables and published recipes",
    printed=BY_TASK,
    table="imagenet_resnet50",
    note="A β without a length of training says nothing: read it as a window over T. torchvision's ResNet-50 averages "
    "over 29 300 steps, β = 0.99997.",
)
def by_task(ranges: Form, effort: Effort) -> Outcome:
    uses = {
        "classification": 0.999,
        "detection": 0.9999,
        "generative": 0.9999,
        "rl": 0.995,
    }  # §8.1, YOLOv5, DDPM, TD3
    inside = {task: task in ranges and ranges[task][0] <= uses[task] <= ranges[task][1] for task in uses}
    return reported(
        all(inside.values()),
        "the recipes' β inside",
        ", ".join(f"{task} {uses[task]:g}: {ok}" for task, ok in inside.items()),
    )


def _follows(rule: Form, per_epoch: float) -> bool:
    """Does β = rule(T) give the ranges by length, at so many steps an epoch?"""

    def inside(epochs: float, low: float, high: float) -> bool:
        window = 1 / (1 - rule(epochs * per_epoch)) if rule(epochs * per_epoch) < 1 else math.inf
        return 1 / (1 - low) / 1.3 <= window <= 1 / (1 - high) * 1.3

    longer = all(inside(e, *BY_LENGTH[ends]) for ends in ((10, 100), (100, 1000)) for e in ends)
    return longer and any(inside(e, *BY_LENGTH[1, 10]) for e in (1, 2, 3, 5))


@statement(
    "9.1-basis",
    section="9.1",
    says="The ranges by length of training follow from β ≈ 1 − 2/√T.",
    verdict=WRONG,
    method="the rule at every number of steps an epoch from 10 to 100 000; published recipes",
    printed=lambda T: 1 - 2 / math.sqrt(T),
    corrected=r"\beta \approx 1 - \frac{100}{T} \quad\text{(a window of 1 \% of the run)}",
    right=lambda T: 1 - 100 / T,
    states="(34)",
    note="By (34), β = 0.9999 belongs to 4·10⁸ steps and 0.99999 to 4·10¹⁰. The table fits a window of a hundredth of the "
    "run at 1000 steps an epoch.",
)
def basis(rule: Form, effort: Effort) -> Outcome:
    fits = [n for n in np.logspace(1, 5, 401) if _follows(rule, float(n))]
    off = {name: (1 / (1 - beta)) / (1 / (1 - rule(T))) for name, (beta, T) in RECIPES.items()}
    return truth(
        bool(fits) and all(0.2 < value < 5 for value in off.values()),
        "the ranges at some number of steps an epoch, and the recipes within a factor of 5",
        (
            f"fits at {number(min(fits))} to {number(max(fits))} steps an epoch"
            if fits
            else "fits at no number of steps an epoch"
        )
        + "; recipes' windows over the rule's: "
        + ", ".join(f"{name} {number(value, 2)}" for name, value in off.items()),
    )


@statement(
    "9.1-own-tables",
    section="9.1",
    says="The advice agrees with the article's tables: classification (§8.1), diffusion (§16.1), quick table (§17.4).",
    verdict=HOLDS,
    method="best β of each table inside the range",
    printed=BY_TASK,
    states="the tables of §8.1, §16.1 and §17.4",
)
def agrees_with_tables(ranges: Form, effort: Effort) -> Outcome:
    best = [
        ("classification", 0.999, "§8.1"),
        ("generative", 0.9999, "§16.1"),
        ("classification", 0.99, "§17.4"),
        ("generative", 0.9999, "§17.4"),
    ]
    inside = [ranges[task][0] <= beta <= ranges[task][1] for task, beta, _ in best]
    return truth(all(inside), "every best β inside its range", f"{sum(inside)} of {len(inside)}")


def _model(normed: str = "") -> nn.Module:
    import torch
    from torch import nn

    torch.manual_seed(0)
    norms: dict[str, list[nn.Module]] = {"batch": [nn.BatchNorm1d(8)], "layer": [nn.LayerNorm(8)]}
    norm = norms.get(normed, [])
    return nn.Sequential(nn.Linear(4, 8), *norm, nn.ReLU(), nn.Linear(8, 1)).double()


def _train(model: nn.Module, steps: int, after: Any, seed: int = 0) -> None:
    import torch

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(16, 4, dtype=torch.float64, generator=generator)
        optimizer.zero_grad()
        (
            (model(x).squeeze(1) - x.sum(1) - torch.randn(16, generator=generator).double()) ** 2
        ).mean().backward()
        optimizer.step()
        after()


@statement(
    "9.2-update",
    section="9.2",
    says="The class's update() is (1), from a copy of the initial weights.",
    formula=EMA_CLASS,
    listing=True,
    verdict=HOLDS,
    method="the listing as printed, against (1) in float64",
    printed=EMA_CLASS,
)
def update_is_equation_1(source: Form, effort: Effort) -> Outcome:
    model = _model()
    average = executed(source)["EMA"](model, decay=0.9)
    first = [p.detach().clone().numpy() for p in model.parameters()]
    path: list[list[np.ndarray]] = []

    def after() -> None:
        average.update()
        path.append([p.detach().clone().numpy() for p in model.parameters()])

    _train(model, 20, after)
    exact = [ema([step[i] for step in path], 0.9, start)[-1] for i, start in enumerate(first)]
    gap = max(float(np.abs(e - s.numpy()).max()) for e, s in zip(exact, average.shadow.values(), strict=True))
    return truth(gap < 1e-12, "(1) after 20 steps", f"largest difference {number(gap)}")


@statement(
    "9.2-apply",
    section="9.2",
    says="apply_shadow() switches the model to the averaged weights for an evaluation; training then goes on (§17.4).",
    formula=EMA_CLASS,
    listing=True,
    verdict=WRONG,
    method="the listing as printed: evaluate half-way, train on",
    printed=EMA_CLASS,
    corrected=EMA_CLASS_RIGHT,
    right=EMA_CLASS_RIGHT,
    note="It assigns the averaged tensors themselves to param.data. The training weights are gone, and the next optimiser "
    "step writes into the average.",
    rank=5,
    harm="After one evaluation training continues from the averaged weights, and every optimiser step overwrites the "
    "average: two silent errors from one line.",
)
def evaluate_and_train_on(source: Form, effort: Effort) -> Outcome:
    import torch

    model = _model()
    average = executed(source)["EMA"](model, decay=0.9)
    _train(model, 20, average.update)
    before = [p.detach().clone() for p in model.parameters()]
    shadow = {name: value.clone() for name, value in average.shadow.items()}
    average.apply_shadow()
    applied = all(torch.equal(p, shadow[n]) for n, p in model.named_parameters())
    if hasattr(average, "restore"):
        average.restore()
    kept = all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    _train(model, 1, lambda: None)
    untouched = all(torch.equal(average.shadow[name], value) for name, value in shadow.items())
    return truth(
        applied and kept and untouched,
        "averaged weights in place; training weights back afterwards; the average untouched by the next optimiser step",
        f"in place: {applied}; training weights back: {kept}; average untouched: {untouched}",
    )


@statement(
    "9.2-buffers",
    section="9.2",
    says="Averaging named_parameters() is enough to evaluate the average.",
    formula=EMA_CLASS,
    listing=True,
    verdict=CONDITIONAL,
    method="the average evaluated with the buffers it has, and with statistics recomputed for it",
    printed=EMA_CLASS,
    needs="the model has no buffers that depend on its weights (no batch normalisation)",
    note="Running means and variances are those of the last raw weights: recompute them (SWA) or average them too (timm, YOLOv5).",
)
def buffers_are_left_out(source: Form, effort: Effort) -> Outcome:
    import torch

    gaps = {}
    for normed in ("batch", "layer"):
        model = _model(normed)
        average = executed(source)["EMA"](model, decay=0.98)
        _train(model, 200, average.update)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(average.shadow[name])
        model.eval()
        x = torch.randn(512, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        as_is = model(x)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.reset_running_stats()
                module.momentum = None
        model.train()
        with torch.no_grad():
            for _ in range(20):
                model(torch.randn(512, 4, dtype=torch.float64))
        model.eval()
        gaps[normed] = float((model(x) - as_is).detach().norm() / as_is.detach().norm())
    return conditional(
        max(gaps.values()) < 1e-6,
        gaps["layer"] < 1e-6,
        "the same outputs with statistics recomputed",
        f"outputs off by {percent(gaps['batch'])} with BatchNorm, by {percent(gaps['layer'])} with LayerNorm",
    )


@statement(
    "9.2-usage",
    section="9.2",
    says="The usage listing trains, updates after each step, and evaluates the average.",
    formula=EMA_USE,
    listing=True,
    verdict=HOLDS,
    method="the listing as printed, with a model, data and an optimiser defined",
    printed=EMA_USE,
    states="model, dataloader, criterion, optimizer and evaluate are given; this is the end of training (see apply)",
)
def usage_runs(source: Form, effort: Effort) -> Outcome:
    import torch

    model, seen = _model(), {}
    before = [p.detach().clone() for p in model.parameters()]
    executed(
        EMA_CLASS + source,
        model=model,
        dataloader=[torch.randn(8, 4, dtype=torch.float64) for _ in range(5)],
        criterion=lambda y: (y**2).mean(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        evaluate=lambda m: seen.update({n: p.detach().clone() for n, p in m.named_parameters()}),
    )
    moved = (
        max(float((s - b).abs().max()) for s, b in zip(seen.values(), before, strict=True)) if seen else 0.0
    )
    return truth(
        bool(seen) and 0 < moved < 0.01,
        "evaluate() sees weights that moved by about 0.1 % of the path",
        f"moved by at most {number(moved)}",
    )


@statement(
    "9.3-early",
    section="9.3",
    says="A large β early in training keeps the average near its start; a β that grows from small cures it.",
    verdict=HOLDS,
    method="weight on the start, exactly",
    printed=lambda t: (1 + t) / (10 + t),
    states="started from the initial weights",
)
def early_large(ramp: Form, effort: Effort) -> Outcome:
    T = 1000
    fixed = ema_weights([0.9999] * T)[0]
    ramped = ema_weights([min(0.9999, ramp(t)) for t in range(1, T + 1)])[0]
    return truth(
        fixed > 0.5 and ramped < 0.01,
        "most of the weight on the start if fixed, none if ramped",
        f"{percent(fixed, 3)} fixed at 0.9999, {percent(ramped)} ramped, after 1000 steps",
    )


@statement(
    "9.3-bias",
    section="9.3",
    says="Without the correction (3) early averages are biased towards zero: use it.",
    verdict=CONDITIONAL,
    method="the class of §9.2, and an average from zero, divided by the correction",
    printed=lambda beta, t: 1 - beta ** (t + 1),
    corrected=r"\text{from a copy of } \boldsymbol{\theta}_0 \text{ (the class of §9.2): divide by nothing}",
    right=lambda beta, t: 1.0,
    states="the class of §9.2, which starts from a copy",
    needs="the average starts at zero one step before the first weights, θ_ema,−1 = 0, not from a copy",
    note="The class of §9.2 starts from a copy: (3) then multiplies its weights by up to 1/(1 − β).",
)
def correct_a_copy(divisor: Form, effort: Effort) -> Outcome:
    factor = {t: ema([5.0] * t, 0.999, 5.0)[-1] / divisor(0.999, t) / 5.0 for t in (1, 10, 100)}
    from_zero = {t: ema([5.0] * (t + 1), 0.999, 0.0)[-1] / divisor(0.999, t) / 5.0 for t in (1, 10, 100)}
    return conditional(
        all(math.isclose(value, 1.0) for value in factor.values()),
        all(math.isclose(value, 1.0) for value in from_zero.values()),
        "weights of constant 5 average to 5",
        ", ".join(f"to {number(5 * value)} after {t}" for t, value in factor.items())
        + " steps (β = 0.999); from zero to "
        + ", ".join(number(5 * value) for value in from_zero.values()),
    )


@statement(
    "9.3-every",
    section="9.3",
    says="Updating once an epoch is too slow: update at every step.",
    verdict=CONDITIONAL,
    method="half-life in steps",
    printed=lambda beta, every: beta,
    corrected=r"\text{every } k \text{ steps with } \beta^k",
    right=lambda beta, every: beta**every,
    needs="the same β is kept; with β^k every k steps the half-life is that of β at every step",
)
def once_an_epoch(decay: Form, effort: Effort) -> Outcome:
    beta, every = 0.999, 100
    half = every * math.log(2) / -math.log(decay(beta, every))
    exact = math.log(2) / -math.log(beta)
    powered = every * math.log(2) / -math.log(beta**every)
    return conditional(
        math.isclose(half, exact),
        math.isclose(powered, exact) and half > 10 * exact,
        f"a half-life of {number(exact)} steps",
        f"{number(half)} steps updated every 100 with the same β, {number(powered)} with β^100",
    )


@statement(
    "9.3-evaluate",
    section="9.3",
    says="Evaluating the raw weights instead of the average gives its benefit away.",
    verdict=EMPIRICAL,
    method="exact loss of both in the stationary state of a quadratic",
    printed="average",
    table="imagenet_resnet50",
    note="With the learning rate annealed to zero the two are the same to within 0.05 points.",
)
def evaluate_the_average(which: Form, effort: Effort) -> Outcome:
    q = Quadratic(eta=0.05, beta=0.99)
    losses = {"average": q.ema_excess(), "raw": q.h / 2 * q.iterate_variance}
    return reported(
        which == min(losses, key=lambda key: losses[key]),
        "lower loss for the average at a constant rate",
        f"{number(losses['average'])} against {number(losses['raw'])}",
    )
