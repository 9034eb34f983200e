"""§17.1 and §17.2: clipping and layer normalisation."""

from __future__ import annotations

import math

import numpy as np

from emabench.audit.sections.s08_tables import BERT
from emabench.audit.statement import (
    CONDITIONAL,
    DEFINITION,
    EMPIRICAL,
    NOT_CHECKABLE,
    WRONG,
    Effort,
    Form,
    Outcome,
    conditional,
    defined,
    reported,
    statement,
    truth,
    undefined,
)
from emabench.audit.tools import ema, number, percent, same_as_table

CLIPPING = {"free": {"perplexity": 145}, "clipped": {"perplexity": 127}, "ema99": {"perplexity": 121}}
LAYERNORM = {
    "plain": {"perplexity": 3.85, "variance_reduction": 1.0},
    "norm": {"perplexity": 3.79, "variance_reduction": 1.8},
    "norm_ema": {"perplexity": 3.71, "variance_reduction": 3.2},
}
QUICK = {  # batch size, learning rate, β, warm-up as a share of training
    "ImageNet": (256, 0.1, 0.99, 5 / 90),
    "BERT": (256, 1e-4, 0.999, 10_000 / 1_000_000),
    "diffusion": (128, 1e-4, 0.9999, 1000 / 800_000),
    "ViT": (512, 5e-5, 0.999, 0.01),
}


def _clip(g: np.ndarray, limit: float) -> np.ndarray:
    return g * min(1.0, limit / float(np.linalg.norm(g)))


@statement(
    "110",
    section="17.1",
    says="Clip the gradient, step, average.",
    formula=r"\begin{aligned} \tilde{\boldsymbol{g}}_t &= \text{clip}(\nabla L(\boldsymbol{\theta}_t), \text{max\_norm})\\ \boldsymbol{\theta}_t &= \boldsymbol{\theta}_{t-1} - \eta\tilde{\boldsymbol{g}}_t\\ \boldsymbol{\theta}_{ema,t} &= \beta\boldsymbol{\theta}_{ema,t-1} + (1-\beta)\boldsymbol{\theta}_t \end{aligned}",
    verdict=WRONG,
    method="a step of SGD on ‖θ‖²/2 put into the equations, with and without clipping",
    printed=lambda before, after: after,
    corrected=r"\tilde{\boldsymbol{g}}_t = \text{clip}(\nabla L(\boldsymbol{\theta}_{t-1}), \text{max\_norm})",
    right=lambda before, after: before,
    states="the equations are carried out in their order",
    note="The gradient is needed before the step that makes θ_t. Read as an equation for θ_t it is an implicit (proximal) "
    "step, which nobody takes. An index, as at (50).",
)
def clipped_step(where: Form, effort: Effort) -> Outcome:
    before, eta = np.array([3.0, 4.0]), 0.5
    off = []
    for limit in (1.0, 10.0):
        after = before - eta * _clip(before, limit)  # ∇L = θ
        off.append(float(np.linalg.norm(before - eta * _clip(where(before, after), limit) - after)))
    return truth(
        max(off) < 1e-12,
        "no difference, clipped or not",
        f"{number(off[0])} if clipped, {number(off[1])} if not",
    )


@statement(
    "17.1-exploding",
    section="17.1",
    says="When gradients explode, clipping makes the update jump and the EMA smooths the weights.",
    verdict=EMPIRICAL,
    method="SGD with heavy-tailed gradients, clipped, on a quadratic",
    printed="smoother",
    table="lstm_clipping",
)
def exploding(claim: Form, effort: Effort) -> Outcome:
    rng, theta, average, path = effort.rng, 0.0, 0.0, []
    for _ in range(effort.times(5000)):
        g = theta + float(rng.standard_t(1.5))
        theta -= 0.05 * max(-1.0, min(1.0, g))
        average = 0.99 * average + 0.01 * theta
        path.append((theta, average))
    raw, smooth = np.array(path).std(0)
    return reported(
        (claim == "smoother") == (smooth < raw),
        "the average varies less",
        f"standard deviation {number(float(smooth))} against {number(float(raw))}",
    )


@statement(
    "17.1-vanishing",
    section="17.1",
    says="When gradients vanish, the EMA helps the weights to go on.",
    verdict=WRONG,
    method="zero gradients from a step on",
    printed="weights",
    corrected=r"\text{the weights stand still; the average closes its lag behind them, and stops}",
    right="average",
)
def vanishing(moving: Form, effort: Effort) -> Outcome:
    theta = [0.1 * min(t, 50) for t in range(1, 301)]  # the gradient is zero after step 50
    average = ema(theta, 0.98, 0.0)
    moved = {"weights": theta[-1] - theta[49], "average": average[-1] - average[49]}
    return truth(
        moved[moving] > 0 and average[-1] <= theta[-1],
        f"the {moving} move on after the gradient is gone",
        f"weights by {number(moved['weights'])}, the average by {number(moved['average'])}, up to the weights",
    )


@statement(
    "17.1-table",
    section="17.1",
    says="LSTM language model: PPL 145 without either, 127 with clipping, 121 with clipping and EMA.",
    verdict=EMPIRICAL,
    method="the numbers against those that the table judges",
    printed=CLIPPING,
    table="lstm_clipping",
)
def clipping_numbers(rows: Form, effort: Effort) -> Outcome:
    return same_as_table(rows, "lstm_clipping")


@statement(
    "111",
    section="17.1",
    says="Clip at max_norm = √d, d the number of weights.",
    formula=r"\text{max\_norm} = \sqrt{d} \quad \text{(number of parameters)} \Rightarrow \text{recommended }\beta = 0.99",
    verdict=WRONG,
    method="share of steps that are clipped, for one training at two scales of its loss and two sizes",
    printed=lambda norms, d: math.sqrt(d),
    corrected=r"\text{max\_norm} = c\cdot\text{median}\,\|\nabla L\|\ \text{(in practice 0.25 to 5)}",
    right=lambda norms, d: 1.5 * float(np.median(norms)),
    table="lstm_clipping",
    note="A gradient norm has units, √d has none. For 10⁷ weights √d = 3162, where gradient norms are about 1: no "
    "clipping at all.",
)
def clip_at_root_d(limit: Form, effort: Effort) -> Outcome:
    norms = np.exp(0.5 * effort.rng.normal(size=2000))
    shares = {
        (scale, d): float((scale * norms > limit(scale * norms, d)).mean())
        for scale in (1.0, 1e4)
        for d in (10**4, 10**7)
    }
    values = list(shares.values())
    return truth(
        max(values) - min(values) < 0.01 and 0 < values[0] < 0.5,
        "the same share of steps clipped whatever the scale of the loss and d; some, not most",
        ", ".join(f"{percent(v, 3)} at loss × {scale:g}, d = {d:.0e}" for (scale, d), v in shares.items()),
    )


@statement(
    "111-decay",
    section="17.1",
    says="… which implies β = 0.99.",
    verdict=NOT_CHECKABLE,
    method="what the statement leaves open",
    printed=("any relation between the clipping norm and β", "the length of training"),
)
def implies_decay(missing: Form, effort: Effort) -> Outcome:
    return undefined(missing, "a reason for β = 0.99")


def _layer_norm(x: np.ndarray, gain: float = 1.0, shift: float = 0.0, epsilon: float = 0.0) -> np.ndarray:
    return gain * (x - x.mean()) / np.sqrt(x.var() + epsilon) + shift


@statement(
    "112",
    section="17.2",
    says="Layer normalisation.",
    formula=r"\text{LayerNorm}: \quad \hat{x} = \gamma\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta",
    verdict=DEFINITION,
    method="mean and deviation of its output",
    printed=_layer_norm,
    note="γ and β here are the layer's own; β is not the decay.",
)
def layer_norm(norm: Form, effort: Effort) -> Outcome:
    y = norm(3 + 5 * effort.rng.normal(size=1000), 2.0, 0.5)
    return defined(
        abs(y.mean() - 0.5) < 1e-9 and abs(y.std() - 2) < 1e-9,
        "mean β = 0.5, deviation γ = 2",
        f"{number(float(y.mean()))}, {number(float(y.std()))}",
    )


@statement(
    "17.2-scale",
    section="17.2",
    says="With LayerNorm the size of the weights does not matter, only relative changes do.",
    verdict=CONDITIONAL,
    method="output with the weights before, and the weights after, scaled by ten",
    printed=_layer_norm,
    needs="weights that feed a LayerNorm directly, without bias, ε → 0; γ, β and the last layer do not",
)
def scale_free(norm: Form, effort: Effort) -> Outcome:
    rng = effort.rng
    W, v, x = rng.normal(size=(8, 4)), rng.normal(size=8), rng.normal(size=4)
    base = float(v @ norm(W @ x))
    before, after = float(v @ norm(10 * W @ x)), float(10 * v @ norm(W @ x))
    return conditional(
        max(abs(before / base - 1), abs(after / base - 1)) < 1e-9,
        abs(before / base - 1) < 1e-9,
        "the same output with weights ten times as large",
        f"{number(before / base)} times with those before it scaled, {number(after / base)} times with those after",
    )


@statement(
    "113",
    section="17.2",
    says="The relative rate of change of the weights.",
    formula=r"r_t = \frac{\|\boldsymbol{\theta}_t - \boldsymbol{\theta}_{t-1}\|}{\|\boldsymbol{\theta}_t\|}",
    verdict=DEFINITION,
    method="independence of units",
    printed=lambda new, old: float(np.linalg.norm(new - old) / np.linalg.norm(new)),
)
def rate_of_change(r: Form, effort: Effort) -> Outcome:
    new, old = effort.rng.normal(size=(2, 10))
    return defined(
        math.isclose(r(new, old), r(1000 * new, 1000 * old)),
        "the same in any unit of the weights",
        f"{number(r(new, old))} and {number(r(1000 * new, 1000 * old))}",
    )


@statement(
    "17.2-table",
    section="17.2",
    says="BERT: PPL 3.85, 3.79, 3.71 and variance reduction 1.0, 1.8, 3.2 without LayerNorm, with it, with it and an EMA.",
    verdict=EMPIRICAL,
    method="the numbers against those that the table judges",
    printed=LAYERNORM,
    table="bert_layernorm",
)
def layernorm_numbers(rows: Form, effort: Effort) -> Outcome:
    return same_as_table(rows, "bert_layernorm")


@statement(
    "17.2-same-run",
    section="17.2",
    says="BERT with LayerNorm and without an EMA has PPL 3.79 (§17.2), and 3.85 (§8.2).",
    verdict=CONDITIONAL,
    method="the two tables of the article",
    printed=LAYERNORM["norm"]["perplexity"],
    corrected=r"3.85 \text{ by §8.2 (BERT-base, which has LayerNorm, no EMA); } 3.79 \text{ is } \beta=0.99 \text{ there}",
    right=3.85,
    states="BERT-base has LayerNorm",
    needs="the two tables are of different set-ups, which the text does not say",
    table="bert_layernorm",
    note="3.85 and 3.79 stand for other rows in §8.2: without an EMA, and with β = 0.99, both with LayerNorm.",
)
def same_numbers(value: Form, effort: Effort) -> Outcome:
    there = BERT["none"]["perplexity"]
    within = LAYERNORM["plain"]["perplexity"] > value > LAYERNORM["norm_ema"]["perplexity"]
    return conditional(
        value == there,
        within,
        f"{there:g}, the row of §8.2 without EMA; between the other rows of §17.2",
        f"{value:g}; {within}",
    )


@statement(
    "17.2-equivalent",
    section="17.2",
    says="A variance reduction of 3.2 times is that of β = 0.999.",
    verdict=WRONG,
    method="the article's (10)",
    printed=0.999,
    corrected=r"\beta=\frac{3.2-1}{3.2+1}=0.52\ \text{by (10)};\ \beta=0.999\ \text{gives } 1999",
    right=2.2 / 4.2,
    states="(10)",
    table="bert_layernorm",
    note="With correlated weights 3.2 can well be measured at β = 0.999: for ρ = 0.998 by (10) corrected.",
)
def three_times(beta: Form, effort: Effort) -> Outcome:
    reduction = (1 + beta) / (1 - beta)
    return truth(
        math.isclose(reduction, 3.2, rel_tol=1e-6),
        "3.2 times by (10)",
        f"{number(reduction, 4)} times at β = {number(beta)}",
    )


@statement(
    "114",
    section="17.2",
    says="With LayerNorm β = 0.99, without it 0.999.",
    formula=r"\begin{cases} \text{with LayerNorm}: \beta = 0.99\\ \text{without LayerNorm}: \beta = 0.999 \end{cases}",
    verdict=WRONG,
    method="against §8.2 and the quick table of §17.4, whose Transformers all have LayerNorm",
    printed=0.99,
    corrected=r"\text{with LayerNorm } \beta=0.999\ldots 0.9999 \text{ (§8.2, §17.4); the norm does not decide, the share of the run does}",
    right=0.999,
    states="§8.2; §17.4's quick table",
    table="bert_layernorm",
)
def with_layernorm(beta: Form, effort: Effort) -> Outcome:
    by_82 = beta in (0.999, 0.9999)  # "most effective for Transformers"
    rows = {name: QUICK[name][2] for name in ("BERT", "ViT")}
    return truth(
        by_82 and all(beta == b for b in rows.values()),
        "0.999 to 0.9999 for Transformers (§8.2); 0.999 for BERT and ViT (§17.4)",
        f"{beta:g}",
    )
