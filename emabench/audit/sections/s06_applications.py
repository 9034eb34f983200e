"""§6: EMAs in generative models, detection, semi-supervised and reinforcement learning."""

from __future__ import annotations

import math

import numpy as np

from emabench.audit.statement import (
    CONDITIONAL,
    DEFINITION,
    EMPIRICAL,
    WRONG,
    Effort,
    Form,
    Outcome,
    conditional,
    defined,
    reported,
    statement,
    truth,
)
from emabench.audit.tools import number, percent


def _is_ema(shares: tuple[float, float], beta: float) -> Outcome:
    """An assignment a·average + b·weights is eq. (1) at β when a = β and a + b = 1."""
    old, new = shares
    return defined(
        math.isclose(old, beta) and math.isclose(old + new, 1.0),
        f"(1) with β = {beta:g}: shares that sum to 1",
        f"{old:g} and {new:g}, sum {old + new:g}; half-life {number(math.log(2) / -math.log(old), 4)} steps",
    )


@statement(
    "27",
    section="6.1",
    says="GANs: the average keeps 0.999 of itself and takes 0.001 of the generator.",
    formula=r"\boldsymbol{\theta}_{G,ema} = 0.999\boldsymbol{\theta}_{G,ema} + 0.001\boldsymbol{\theta}_{G}",
    verdict=DEFINITION,
    method="shares of (1)",
    printed=(0.999, 0.001),
)
def gan_update(shares: Form, effort: Effort) -> Outcome:
    return _is_ema(shares, 0.999)


@statement(
    "6.1-both",
    section="6.1",
    says="Generator and discriminator are both evaluated with averaged weights.",
    verdict=WRONG,
    method="which networks a sample depends on",
    printed=("generator", "discriminator"),
    corrected=r"\text{only the generator is averaged (Yazıcı et al. 2019, BigGAN, StyleGAN2); FID and IS are of its samples}",
    right=("generator",),
    note="The discriminator is not evaluated at all: nothing that is reported depends on it.",
)
def what_is_evaluated(networks: Form, effort: Effort) -> Outcome:
    rng = effort.rng
    weights = {"generator": rng.normal(size=(2, 2)), "discriminator": rng.normal(size=(2, 2))}
    z = rng.normal(size=(500, 2))

    def metric(of: dict[str, np.ndarray]) -> float:
        samples = np.tanh(z @ of["generator"])  # what FID and IS are computed from
        return float(np.linalg.norm(np.cov(samples.T) - np.eye(2)))

    before = metric(weights)
    matters = [name for name in networks if metric({**weights, name: weights[name] + 0.5}) != before]
    return truth(
        set(matters) == set(networks),
        "each network that is averaged changes what is evaluated",
        f"the metric depends on {', '.join(matters)} of {', '.join(networks)}",
    )


@statement(
    "6.1-benefits",
    section="6.1",
    says="In GANs an EMA steadies quality, lessens mode collapse, and improves FID and IS.",
    verdict=EMPIRICAL,
    method="published pairs, with and without",
    printed={"FID": "lower", "IS": "higher"},
    note="BigGAN-PyTorch issue 23 (ImageNet-128): FID 18.8 against 41.8, IS 62.9 against 23.9. Mode collapse: no numbers known.",
)
def gan_benefits(directions: Form, effort: Effort) -> Outcome:
    published = {"FID": (41.8, 18.8), "IS": (23.9, 62.9)}
    agrees = all((with_ < without) == (directions[m] == "lower") for m, (without, with_) in published.items())
    return reported(
        agrees, "FID lower, IS higher with an EMA", "FID 41.8 → 18.8, IS 23.9 → 62.9 (one published run)"
    )


@statement(
    "28",
    section="6.2",
    says="Detection: the average keeps 0.9999 of itself after each update.",
    formula=r"\boldsymbol{\theta}_{ema} \leftarrow 0.9999\boldsymbol{\theta}_{ema} + 0.0001\boldsymbol{\theta}",
    verdict=DEFINITION,
    method="shares of (1)",
    printed=(0.9999, 0.0001),
    note="From a copy of the initial weights these still weigh 37 % after 10 000 updates; YOLOv5 and YOLOX ramp β up.",
)
def detection_update(shares: Form, effort: Effort) -> Outcome:
    return _is_ema(shares, 0.9999)


@statement(
    "6.2-map",
    section="6.2",
    says="In detection an EMA raises mAP by 0.5 to 1.0 points.",
    verdict=EMPIRICAL,
    method="published gains of averaging",
    printed=(0.5, 1.0),
    note="Published: SWA, +0.8 to +1.4 AP with 12 more epochs (Faster R-CNN, RetinaNet, YOLOv3, VFNet). No EMA alone is "
    "isolated anywhere; Faster R-CNN uses none by default.",
)
def detection_gain(gain: Form, effort: Effort) -> Outcome:
    published = (0.8, 1.4)
    return reported(
        gain[0] <= published[1] and published[0] <= gain[1],
        "overlaps what is published of averaging",
        f"{gain[0]:g} to {gain[1]:g} against {published[0]:g} to {published[1]:g} (SWA)",
    )


@statement(
    "29",
    section="6.3",
    says="Mean Teacher: the teacher is the EMA of the student with decay α.",
    formula=r"\boldsymbol{\theta}_{teacher,t} = \alpha\boldsymbol{\theta}_{teacher,t-1} + (1-\alpha)\boldsymbol{\theta}_{student,t}",
    verdict=DEFINITION,
    method="against (1)",
    printed=lambda alpha, teacher, student: alpha * teacher + (1 - alpha) * student,
)
def teacher_update(step: Form, effort: Effort) -> Outcome:
    cases = effort.rng.uniform(size=(50, 3))
    gap = max(abs(step(a, t, s) - (t + (1 - a) * (s - t))) for a, t, s in cases)
    return defined(gap < 1e-12, "(1) with β = α", f"difference {number(gap)} in 50 random cases")


@statement(
    "30",
    section="6.3",
    says="The loss is the supervised loss plus λ times the consistency of student and teacher.",
    formula=r"\mathcal{L} = \mathcal{L}_{supervised}(\boldsymbol{\theta}_{student}) + \lambda\mathcal{L}_{consistency}(\boldsymbol{\theta}_{student}, \boldsymbol{\theta}_{teacher})",
    verdict=DEFINITION,
    method="limits in λ; no gradient into the teacher",
    printed=lambda supervised, consistency, weight: supervised + weight * consistency,
    needs="gradients flow to the student only",
)
def consistency_loss(total: Form, effort: Effort) -> Outcome:
    return defined(
        total(0.7, 3.0, 0.0) == 0.7
        and total(0.7, 0.0, 5.0) == 0.7
        and total(0.7, 3.0, 2.0) > total(0.7, 3.0, 1.0),
        "supervised alone at λ = 0 or when both agree; rising in λ",
        f"{total(0.7, 3.0, 0.0)} at λ = 0, {total(0.7, 3.0, 2.0)} at λ = 2",
    )


@statement(
    "6.3-teacher",
    section="6.3",
    says="The teacher is steadier than the student and gives better pseudo-labels.",
    verdict=EMPIRICAL,
    method="published error rates",
    printed="teacher",
    note="CIFAR-10 with 1000 labels: 21.55 % error with the averaged teacher, 27.36 % with the student as its own (Π model).",
)
def better_teacher(better: Form, effort: Effort) -> Outcome:
    published = {"teacher": 21.55, "student": 27.36}
    return reported(
        better == min(published, key=lambda key: published[key]),
        "lower error with the teacher",
        f"{published}",
    )


@statement(
    "31",
    section="6.4",
    says="TD3 and SAC: the target network keeps τ of itself and takes 1 − τ of the network.",
    formula=r"\boldsymbol{\theta}_{target} \leftarrow \tau\boldsymbol{\theta}_{target} + (1-\tau)\boldsymbol{\theta}",
    verdict=CONDITIONAL,
    method="the papers' update with the papers' τ",
    printed=lambda tau, target, theta: tau * target + (1 - tau) * theta,
    corrected=r"\boldsymbol{\theta}_{target} \leftarrow (1-\tau)\,\boldsymbol{\theta}_{target} + \tau\,\boldsymbol{\theta},\qquad \tau = 0.005",
    right=lambda tau, target, theta: (1 - tau) * target + tau * theta,
    needs="τ is one less what TD3 and SAC call τ: 0.995 here is their 0.005",
    note="Put the papers' τ = 0.005 into (31) and the target copies 99.5 % of the network at every step.",
)
def target_update(step: Form, effort: Effort) -> Outcome:
    papers = step(0.005, 1.0, 0.0)  # what is left of the target
    here = step(0.995, 1.0, 0.0)
    return conditional(
        math.isclose(papers, 0.995),
        math.isclose(here, 0.995),
        "the target keeps 0.995 of itself",
        f"{papers:g} with the papers' τ = 0.005, {here:g} with τ = 0.995",
    )


@statement(
    "6.4-tau",
    section="6.4",
    says="Typically τ = 0.995.",
    verdict=CONDITIONAL,
    method="against the papers' 0.005",
    printed=0.995,
    needs="τ as in (31): what the target keeps",
)
def usual_tau(tau: Form, effort: Effort) -> Outcome:
    return conditional(
        math.isclose(tau, 0.005),
        math.isclose(1 - tau, 0.005),
        "TD3, SAC: τ = 0.005",
        f"1 − {tau:g} = {1 - tau:.3f}",
    )


@statement(
    "6.4-overestimation",
    section="6.4",
    says="A slow target steadies Q and prevents overestimation.",
    verdict=EMPIRICAL,
    method="the maximum over noisy values, with and without an averaged target",
    printed=True,
    table="td3_target",
    note="In TD3 it is the minimum of two critics that counters overestimation; the slow target steadies the bootstrap.",
)
def overestimation(claimed: Form, effort: Effort) -> Outcome:
    rng, runs = effort.rng, effort.times(4000)
    noise = rng.normal(size=(runs, 2, 8))  # two critics, eight actions of equal value 0
    single, twin = noise[:, 0].max(1).mean(), noise.min(1).max(1).mean()
    from emabench.audit.tools import reported_rows

    reported_rows("td3_target")  # the table is there; it reports no numbers of the article's
    return reported(
        bool(claimed) and twin < single,
        "measured by table td3_target",
        f"max of 8 noisy values: bias {number(single)} with one critic, {number(twin)} with the minimum of two",
    )


@statement(
    "6.1-slow",
    section="6.1",
    says="β = 0.999 to 0.9999 is very large: the average changes very slowly.",
    verdict=CONDITIONAL,
    method="half-lives as a share of training",
    printed=(0.999, 0.9999),
    needs="training is not much longer than the half-life: slow is a matter of β and T together",
)
def slow_is_relative(betas: Form, effort: Effort) -> Outcome:
    half = [math.log(2) / -math.log(beta) for beta in betas]
    shares = [(h / 2000, h / 500_000) for h in half]
    return conditional(
        all(long > 0.01 for _, long in shares),
        all(short > 0.1 for short, _ in shares),
        "a half-life that is a good part of training",
        f"half-lives {number(half[0])} and {number(half[1])} steps: {percent(shares[0][1])} and {percent(shares[1][1])} "
        "of 500 000 steps",
    )
