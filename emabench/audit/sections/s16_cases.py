"""§16: diffusion models, self-supervised learning, meta-learning, online learning."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from emabench.audit.sections.listings import DDPM_LOOP, executed
from emabench.audit.statement import (
    APPROXIMATE,
    CONDITIONAL,
    DEFINITION,
    EMPIRICAL,
    HOLDS,
    WRONG,
    Curves,
    Effort,
    Form,
    Outcome,
    approximate,
    conditional,
    defined,
    reported,
    statement,
    truth,
)
from emabench.audit.tools import ema, ema_weights, number, percent, same_as_table

DDPM = {
    "none": {"fid": 5.2, "is": 9.5},
    "b99": {"fid": 4.8, "is": 10.2},
    "b999": {"fid": 3.9, "is": 11.8},
    "b9999": {"fid": 3.2, "is": 13.1},
}


@statement(
    "103",
    section="16.1",
    says="Diffusion models: train, average after each step, sample with the average.",
    formula=r"\begin{aligned} \text{Training:} & \quad \boldsymbol{\theta}_t \leftarrow \boldsymbol{\theta}_{t-1} - \eta\nabla_{\boldsymbol{\theta}}L\\ \text{EMA update:} & \quad \boldsymbol{\theta}_{ema,t} \leftarrow \beta\boldsymbol{\theta}_{ema,t-1} + (1-\beta)\boldsymbol{\theta}_t\\ \text{Sampling/evaluation:} & \quad \text{use }\boldsymbol{\theta}_{ema,T} \end{aligned}",
    verdict=DEFINITION,
    method="shares of (1)",
    printed=lambda beta, old, new: beta * old + (1 - beta) * new,
)
def diffusion(step: Form, effort: Effort) -> Outcome:
    return defined(
        math.isclose(step(0.9999, 1.0, 2.0), 1.0001),
        "(1): 1.0001 from 1 and 2 at β = 0.9999",
        f"{step(0.9999, 1.0, 2.0):.5f}",
    )


@statement(
    "16.1-table",
    section="16.1",
    says="DDPM on CIFAR-10: FID 5.2, 4.8, 3.9, 3.2 and IS 9.5, 10.2, 11.8, 13.1 as β grows to 0.9999.",
    verdict=EMPIRICAL,
    method="the numbers against those that the table judges",
    printed=DDPM,
    table="ddpm_cifar10",
)
def ddpm_numbers(rows: Form, effort: Effort) -> Outcome:
    return same_as_table(rows, "ddpm_cifar10")


@statement(
    "16.1-fid",
    section="16.1",
    says="FID falls by 40 %.",
    verdict=APPROXIMATE,
    method="the table's own rows",
    printed=0.40,
    table="ddpm_cifar10",
)
def fid_drop(claimed: Form, effort: Effort) -> Outcome:
    exact = 1 - DDPM["b9999"]["fid"] / DDPM["none"]["fid"]
    return approximate(abs(claimed / exact - 1), 0.05, percent(exact, 4), percent(claimed))


@statement(
    "16.1-best",
    section="16.1",
    says="β = 0.9999 gives the best samples.",
    verdict=HOLDS,
    method="order of the table's own rows",
    printed="b9999",
    states="the table of §16.1",
    table="ddpm_cifar10",
)
def ddpm_best(best: Form, effort: Effort) -> Outcome:
    first = min(DDPM, key=lambda row: DDPM[row]["fid"]), max(DDPM, key=lambda row: DDPM[row]["is"])
    return truth(set(first) == {best}, f"{best} first by FID and by IS", f"{first}")


@statement(
    "16.1-is",
    section="16.1",
    says="The Inception Scores are those of a DDPM on CIFAR-10: 9.5 without EMA, up to 13.1 with.",
    verdict=WRONG,
    method="against the score of CIFAR-10's real images, 11.24 ± 0.12 (Salimans et al. 2016), and the published pair",
    printed=(9.5, 13.1),
    corrected=r"8.88 \pm 0.12 \text{ without, } 9.46 \text{ to } 9.49 \text{ with (Ho et al. 2020; w86763777/pytorch-ddpm)}",
    right=(8.88, 9.49),
    table="ddpm_cifar10",
    note="11.8 and 13.1 lie above the data's own score; 9.5 is what a DDPM has with its EMA.",
)
def inception_scores(scores: Form, effort: Effort) -> Outcome:
    real, published = 11.24 + 2 * 0.12, ((8.882, 0.115), (9.493, 0.154))
    near = all(abs(s - mean) <= 2 * sd for s, (mean, sd) in zip(scores, published, strict=True))
    return truth(
        near and max(scores) <= real,
        "within two deviations of the published pair, and not above real images",
        f"{scores[0]:g} and {scores[1]:g}; real images {real - 0.24:g}",
    )


@statement(
    "16.1-time",
    section="16.1",
    says="An EMA takes no time: 1.0x in every row.",
    verdict=EMPIRICAL,
    method="operations of an update against those of a training step of a DDPM",
    printed=1.0,
    note="`emabench bench averaging` measures it. Per parameter: 3 operations against some 6 × 128 × (pixels it serves).",
)
def no_time(factor: Form, effort: Effort) -> Outcome:
    exact = 1 + 3 / (6 * 128)  # a parameter used once a sample at least, batch 128, forward and backward
    return reported(abs(factor / exact - 1) < 0.01, "1.0 to one digit", f"at most {exact:.4f} by operations")


@statement(
    "16.1-listing",
    section="16.1",
    says="The DDPM training loop with an EMA of 0.9999.",
    formula=DDPM_LOOP,
    listing=True,
    verdict=CONDITIONAL,
    method="run as printed with a model, data and an optimiser; the EMA against (1)",
    printed=DDPM_LOOP,
    needs="targets are given (the printed loop never sets them), ema_model is a deep copy made beforehand, and the model "
    "has no buffers that matter",
)
def ddpm_loop(source: Form, effort: Effort) -> Outcome:
    import copy

    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    average = copy.deepcopy(model)
    path: list[np.ndarray] = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: path.append(model.weight.detach().clone().numpy()))
    start = model.weight.detach().clone().numpy()
    given: dict[str, Any] = {
        "torch": torch,
        "num_epochs": 2,
        "dataloader": [torch.randn(4, 3, dtype=torch.float64) for _ in range(5)],
        "criterion": lambda out, y: ((out - y) ** 2).mean(),
        "model": model,
        "ema_model": average,
        "optimizer": optimizer,
    }
    try:
        executed(source, **given)
        as_printed = "runs"
    except NameError as error:
        as_printed = f"NameError ({error})"
    executed(source, **given, targets=torch.zeros(4, 2, dtype=torch.float64))
    gap = float(np.abs(ema(path, 0.9999, start)[-1] - average.weight.detach().numpy()).max())
    return conditional(
        as_printed == "runs" and gap < 1e-12,
        gap < 1e-12,
        "runs, and ema_model is (1) with β = 0.9999",
        f"as printed: {as_printed}; with targets: difference {number(gap)} after {len(path)} steps",
    )


@statement(
    "104",
    section="16.2",
    says="MoCo: the key encoder is the EMA of the query encoder.",
    formula=r"\begin{aligned} \boldsymbol{\theta}_q &\leftarrow \boldsymbol{\theta}_q - \eta\nabla_{\boldsymbol{\theta}_q}L\\ \boldsymbol{\theta}_k &\leftarrow \tau\boldsymbol{\theta}_k + (1-\tau)\boldsymbol{\theta}_q \quad \text{(EMA update)} \end{aligned}",
    verdict=DEFINITION,
    method="shares of (1)",
    printed=lambda tau, key, query: tau * key + (1 - tau) * query,
    note="MoCo calls it m; τ is its temperature.",
)
def key_encoder(step: Form, effort: Effort) -> Outcome:
    return defined(
        math.isclose(step(0.999, 1.0, 2.0), 1.001),
        "(1) with β = τ: 1.001 from 1 and 2 at τ = 0.999",
        f"{step(0.999, 1.0, 2.0):.4f}",
    )


@statement(
    "16.2-table",
    section="16.2",
    says="ImageNet-100: 60.3 without EMA, 64.1 with τ = 0.999.",
    verdict=EMPIRICAL,
    method="the numbers against those that the table judges",
    printed={"m0": {"linear_probe": 60.3}, "m999": {"linear_probe": 64.1}},
    table="moco_imagenet100",
)
def moco_numbers(rows: Form, effort: Effort) -> Outcome:
    return same_as_table(rows, "moco_imagenet100")


@statement(
    "16.2-gain",
    section="16.2",
    says="That is +3.8 %.",
    verdict=HOLDS,
    method="the table's own rows",
    printed=3.8,
    states="points",
    table="moco_imagenet100",
)
def moco_gain(gain: Form, effort: Effort) -> Outcome:
    return truth(math.isclose(gain, 64.1 - 60.3), f"{64.1 - 60.3:.1f} points", f"{gain:g}")


@statement(
    "16.2-tau",
    section="16.2",
    says="The best τ is 0.999 or 0.9995.",
    verdict=EMPIRICAL,
    method="MoCo's own ablation",
    printed=0.999,
    table="moco_imagenet100",
    note="Published (ImageNet, K = 4096): 55.2 at 0.9, 57.8 at 0.99, 59.0 at 0.999, 58.9 at 0.9999; no training at 0.",
)
def best_tau(best: Form, effort: Effort) -> Outcome:
    ablation = {0.9: 55.2, 0.99: 57.8, 0.999: 59.0, 0.9999: 58.9}
    return reported(
        max(ablation, key=lambda m: ablation[m]) == best,
        "0.999 first in the published ablation",
        f"{ablation}",
    )


@statement(
    "16.2-slow-keys",
    section="16.2",
    says="Slow keys keep the queue consistent.",
    verdict=EMPIRICAL,
    method="how far the encoder moves while a key stays in the queue",
    printed=0.999,
    table="moco_imagenet100",
)
def queue(tau: Form, effort: Effort) -> Outcome:
    walk = np.cumsum(effort.rng.normal(size=3000))
    keys = np.array(ema(walk, tau, 0.0))
    moved = [float(np.abs(path[256:] - path[:-256]).mean()) for path in (walk, keys)]
    return reported(
        moved[1] < moved[0],
        "keys move less than queries over 256 steps",
        f"{number(moved[1])} against {number(moved[0])}",
    )


def _inner(chained: bool) -> Form:
    def last(theta: float, alpha: float, K: int, optimum: float) -> float:
        current = theta
        for _ in range(K):
            start = current if chained else theta
            current = start - alpha * (start - optimum)
        return current

    return last


@statement(
    "105",
    section="16.3",
    says="EMA-MAML: K inner steps θ′_i = θ − α∇L(θ), averaged, then an outer step.",
    formula=r"\begin{aligned} \text{Inner:} & \quad \boldsymbol{\theta}'_i = \boldsymbol{\theta} - \alpha\nabla L_{task}(\boldsymbol{\theta}), \quad i=1,\ldots,K\\ \text{EMA:} & \quad \bar{\boldsymbol{\theta}}'_i = \beta\bar{\boldsymbol{\theta}}'_{i-1} + (1-\beta)\boldsymbol{\theta}'_i\\ \text{Outer:} & \quad \boldsymbol{\theta} \leftarrow \boldsymbol{\theta} - \beta'\nabla L_{meta}(\bar{\boldsymbol{\theta}}'_K) \end{aligned}",
    verdict=WRONG,
    method="the inner loop on a quadratic against K gradient steps",
    printed=_inner(chained=False),
    corrected=r"\boldsymbol{\theta}'_i=\boldsymbol{\theta}'_{i-1}-\alpha\nabla L_{task}(\boldsymbol{\theta}'_{i-1}),\quad\boldsymbol{\theta}'_0=\bar{\boldsymbol{\theta}}'_0=\boldsymbol{\theta}",
    right=_inner(chained=True),
    note="As printed every inner step starts from θ: all K are the same, and the average is that one step, shrunk by "
    "1 − β^K. The start of the average is not given.",
)
def inner_steps(last: Form, effort: Effort) -> Outcome:
    exact = 3 - 3 * 0.9**5
    got = last(0.0, 0.1, 5, 3.0)
    return truth(
        math.isclose(got, exact), f"{number(exact, 4)} after 5 steps of α = 0.1 towards 3", number(got, 4)
    )


@statement(
    "16.3-table",
    section="16.3",
    says="Omniglot 5-way 5-shot: 98.5 with MAML, 99.1 with EMA, +0.6.",
    verdict=EMPIRICAL,
    method="the table's own difference; published values",
    printed=(98.5, 99.1, 0.6),
    note="No table measures it. MAML itself is published with 99.9 ± 0.1: there is no room above.",
)
def maml_numbers(row: Form, effort: Effort) -> Outcome:
    without, with_, gain = row
    return reported(
        math.isclose(with_ - without, gain, abs_tol=1e-9),
        "the difference as stated",
        f"{with_ - without:.1f}; published without EMA: 99.9",
    )


@statement(
    "106",
    section="16.4",
    says="Online SGD with a rate η_t.",
    formula=r"\boldsymbol{\theta}_t = \boldsymbol{\theta}_{t-1} - \eta_t\tilde{\boldsymbol{g}}_t",
    verdict=DEFINITION,
    method="a step in numbers",
    printed=lambda theta, eta, g: theta - eta * g,
)
def online_step(step: Form, effort: Effort) -> Outcome:
    return defined(step(2.0, 0.5, 3.0) == 0.5, "0.5 from 2 with η = 0.5, g = 3", f"{step(2.0, 0.5, 3.0):g}")


@statement(
    "107",
    section="16.4",
    says="An EMA whose decay depends on the step.",
    formula=r"\boldsymbol{\theta}_{ema,t} = \beta_t\boldsymbol{\theta}_{ema,t-1} + (1-\beta_t)\boldsymbol{\theta}_t",
    verdict=DEFINITION,
    method="unrolled weights: not negative, sum one",
    printed=lambda beta, old, new: beta * old + (1 - beta) * new,
    states="0 ≤ β_t ≤ 1",
)
def varying(step: Form, effort: Effort) -> Outcome:
    rng = effort.rng
    betas, theta = rng.uniform(size=30), rng.normal(size=30)
    average = 2.0
    for beta, value in zip(betas, theta, strict=True):
        average = step(beta, average, value)
    weights = np.array(ema_weights(list(betas)))
    exact = float(weights @ [2.0, *theta])
    return defined(
        math.isclose(average, exact) and bool(np.all(weights >= 0)) and math.isclose(weights.sum(), 1),
        f"Σ w_s θ_s = {number(exact, 5)}",
        number(average, 5),
    )


def sqrt_decay(t: float) -> float:
    """(108)."""
    return 1 - 1 / math.sqrt(t + 1)


@statement(
    "108",
    section="16.4",
    says="β_t = 1 − 1/√(t + 1).",
    formula=r"\beta_t = 1 - \frac{1}{\sqrt{t + 1}}",
    verdict=DEFINITION,
    method="range and monotony",
    printed=sqrt_decay,
)
def growing_decay(beta: Form, effort: Effort) -> Outcome:
    values = [beta(t) for t in range(10_000)]
    return defined(
        values[0] == 0 and bool(np.all(np.diff(values) > 0)) and values[-1] < 1,
        "from 0, rising, below 1",
        f"0 at t = 0, {number(values[100])} at 100, {number(values[-1])} at 9999: a window of √t",
    )


@statement(
    "16.4-early",
    section="16.4",
    says="By (108) β is small early and near 1 late.",
    verdict=HOLDS,
    method="values",
    printed=sqrt_decay,
    states="(108)",
)
def small_then_near_one(beta: Form, effort: Effort) -> Outcome:
    return truth(
        beta(1) < 0.5 and beta(10_000) > 0.98,
        "below 0.5 at t = 1, near 1 at t = 10⁴",
        f"{number(beta(1))} and {number(beta(10_000))}",
    )


def _tracking(decay: Form, T: int, drift: float, noise: float, rng: np.random.Generator) -> float:
    """Mean square error, over the second half, of an EMA of noisy observations of a truth that moves steadily."""
    truth_ = drift * np.arange(T)
    observed = truth_ + noise * rng.normal(size=T)
    average = np.array(ema(observed, decay, float(observed[0])))
    return float(((average - truth_)[T // 2 :] ** 2).mean())


@statement(
    "16.4-adapts",
    section="16.4",
    says="An EMA adapts naturally to drift.",
    verdict=CONDITIONAL,
    method="error behind a steady drift, short and long streams, simulated",
    printed=lambda t: 1 - 1 / math.sqrt(t + 1),
    corrected=r"\text{a fixed window, matched to drift and noise: } 1-\beta = \left(2\,\text{drift}^2/\text{noise}^2\right)^{1/3}",
    right=lambda t: 1 - (2 * 0.02**2) ** (1 / 3),
    states="(107) with (108)",
    needs="β stays fixed, unlike that of (108)",
    note="The window of (108) is √t: the longer the stream, the slower it follows.",
)
def adapts(decay: Form, effort: Effort) -> Outcome:
    rng = effort.rng
    lengths = (1000, effort.times(30_000))
    short, long = (_tracking(decay, T, 0.02, 1.0, rng) for T in lengths)
    fixed = [_tracking(lambda _: decay(80), T, 0.02, 1.0, rng) for T in lengths]
    return conditional(
        long < 2 * short,
        fixed[1] < 2 * fixed[0],
        "the error does not grow with the length of the stream",
        f"{number(short)} after 1000 steps, {number(long)} after {lengths[1]} (drift 0.02, noise 1); {number(fixed[0])} and "
        f"{number(fixed[1])} with β = {number(decay(80))} throughout",
    )


def _printed_weight(t: int, k: int) -> float:
    return math.prod(1 - sqrt_decay(t - j) for j in range(k))


def _right_weight(t: int, k: int) -> float:
    return (1 - sqrt_decay(t - k)) * math.prod(sqrt_decay(t - j) for j in range(k))


@statement(
    "109",
    section="16.4",
    says="The weight of step t − k is Π(1 − β), about k^(−α).",
    formula=r"\text{Weight}(t-k) = (1-\beta_t)(1-\beta_{t-1})\cdots(1-\beta_{t-k+1}) \approx \frac{1}{k^{\alpha}}",
    verdict=WRONG,
    method="weights of (107) by the recursion",
    printed=_printed_weight,
    corrected=r"\text{Weight}(t-k)=(1-\beta_{t-k})\prod_{j=0}^{k-1}\beta_{t-j}\approx\frac{e^{-k/\sqrt{t}}}{\sqrt t}",
    right=_right_weight,
    states="(107), (108)",
    note="The product of the shares taken, where it should be of the shares kept: at t = 10⁴ and k = 10 it is 10⁻²⁰.",
    figure=lambda: Curves(
        "Weight of the step k before, t = 10 000, by (107) and (108)",
        "k",
        "weight",
        {
            "printed": [(k, 0.01 * k**-0.5) for k in (1, 3, 10, 30, 100, 200, 400)],
            "right": [(k, _right_weight(10_000, k)) for k in (1, 3, 10, 30, 100, 200, 400)],
        },
        log_x=True,
        log_y=True,
    ),
)
def forgetting(weight: Form, effort: Effort) -> Outcome:
    t = 2000
    exact = ema_weights([sqrt_decay(s) for s in range(1, t + 1)])  # entry s is the weight of step s
    rows = {k: exact[t - k] for k in (1, 5, 50, 200)}
    return truth(
        all(math.isclose(weight(t, k), w, rel_tol=1e-6) for k, w in rows.items()),
        ", ".join(f"{number(w)} at k = {k}" for k, w in rows.items()) + f" (t = {t})",
        ", ".join(number(weight(t, k)) for k in rows),
    )


@statement(
    "109-alpha",
    section="16.4",
    says="Usually α ≈ 0.5.",
    verdict=WRONG,
    method="slope of the exact weights in log k",
    printed=lambda k: k**-0.5,
    corrected=r"e^{-k/\sqrt t}\text{: no power of } k",
    right=lambda k: math.exp(-k / math.sqrt(2000)),
    states="(107), (108)",
)
def no_power(shape: Form, effort: Effort) -> Outcome:
    t = 2000
    exact = ema_weights([sqrt_decay(s) for s in range(1, t + 1)])
    ratios = {k: exact[t - k] / exact[t - 1] for k in (5, 20, 50, 100)}
    return truth(
        all(abs(shape(k) / shape(1) / r - 1) < 0.12 for k, r in ratios.items()),
        ", ".join(f"{number(r)} at k = {k}" for k, r in ratios.items()) + " of the weight at k = 1",
        ", ".join(number(shape(k) / shape(1)) for k in ratios),
    )
