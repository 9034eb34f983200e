"""§17.3 and §17.4: warm-up, and the complete recipe."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from emabench.audit.sections.listings import (
    EMA_CLASS,
    EMA_CLASS_RIGHT,
    TRAINING_LOOP,
    TRAINING_LOOP_RIGHT,
    executed,
)
from emabench.audit.sections.s09_practice import BY_TASK
from emabench.audit.sections.s17a_clipping import QUICK
from emabench.audit.statement import (
    CONDITIONAL,
    DEFINITION,
    EMPIRICAL,
    HOLDS,
    WRONG,
    Curves,
    Effort,
    Form,
    Outcome,
    conditional,
    defined,
    reported,
    statement,
    truth,
)
from emabench.audit.tools import Quadratic, ema, ema_weights, number, percent, same_as_table

WARMUP = {"sgd": {"top1": 76.1}, "fixed": {"top1": 76.3}, "linear": {"top1": 76.5}}
EPOCHS = {"sgd": 90, "fixed": 92, "linear": 85}


def _ramp(t: float, warm: float, low: float = 0.0, high: float = 0.999) -> float:
    """(115)."""
    return low + t / warm * (high - low) if t <= warm else high


@statement(
    "115",
    section="17.3",
    says="β grows linearly from β_min to β_max over the warm-up, then stays.",
    formula=r"\beta_t = \begin{cases} \beta_{min} + \frac{t}{T_{warm}}(\beta_{max} - \beta_{min}) & \text{if } t \leq T_{warm}\\ \beta_{max} & \text{if } t > T_{warm} \end{cases}",
    verdict=HOLDS,
    method="values at the ends, continuity, and (36)",
    printed=_ramp,
)
def two_stages(beta: Form, effort: Effort) -> Outcome:
    values = [beta(t, 100) for t in range(301)]
    as_36 = max(abs(v - min(0.999, t / 100 * 0.999)) for t, v in enumerate(values))
    return truth(
        values[0] == 0 and math.isclose(values[100], 0.999) and as_36 < 1e-12,
        "0 at the start, β_max from T_warm on; the same as (36)",
        f"{values[0]:g}, {values[50]:g}, {values[100]:g} at 0, T_warm/2, T_warm; difference from (36) {number(as_36)}",
    )


@statement(
    "17.3-early",
    section="17.3",
    says="Early in training an EMA smooths too much and holds learning back.",
    verdict=CONDITIONAL,
    method="exact losses of the weights and of the average early on",
    printed=0.999,
    needs="what is held back is the average that is evaluated; training itself does not see it",
)
def held_back(beta: Form, effort: Effort) -> Outcome:
    q = Quadratic(eta=0.05, sigma2=0.01, beta=beta, start=1.0)
    raw, average = q.iterate_excess(100), q.ema_excess(100)
    training_changed = False  # the iterates of Quadratic do not depend on beta
    return conditional(
        training_changed,
        average > 10 * raw,
        "a larger loss of the average early on",
        f"{number(average)} against {number(raw)} of the weights at step 100",
    )


@statement(
    "17.3-equivalent",
    section="17.3",
    says="Ramping β is equivalent to warming up the learning rate.",
    verdict=WRONG,
    method="the same noise with either, weights and averages compared",
    printed="rate",
    corrected=r"\text{it changes the average alone; a learning-rate warm-up changes training}",
    right="average",
)
def equivalent(changed: Form, effort: Effort) -> Outcome:
    noise = effort.rng.normal(size=400)

    def run(warm_rate: bool, warm_beta: bool) -> tuple[float, float]:
        theta = average = 5.0
        for t in range(60):
            eta = 0.1 * (min(1.0, (t + 1) / 40) if warm_rate else 1.0)
            theta -= eta * (theta + float(noise[t]))
            beta = _ramp(t, 40, 0.0, 0.95) if warm_beta else 0.95
            average = beta * average + (1 - beta) * theta
        return theta, average

    plain, ramped, warmed = run(False, False), run(False, True), run(True, False)
    same_weights = ramped[0] == plain[0]
    as_rate = math.isclose(ramped[0], warmed[0]) and math.isclose(ramped[1], warmed[1], rel_tol=0.05)
    holds = as_rate if changed == "rate" else same_weights and ramped[1] != plain[1]
    return truth(
        holds,
        "the weights and averages of a learning-rate warm-up"
        if changed == "rate"
        else "the same weights, another average",
        f"weights {number(ramped[0])} ramped, {number(plain[0])} plain, {number(warmed[0])} with a warmed rate",
    )


@statement(
    "116",
    section="17.3",
    says="Combined warm-up: the learning rate is η₀·min(1, t/T_warm)·β_t.",
    formula=r"\eta_t = \eta_0 \cdot \min\left(1, \frac{t}{T_{warm}}\right) \cdot \beta_t",
    verdict=DEFINITION,
    method="with (115) and its typical values: range, monotony, and the rate after the warm-up",
    printed=lambda t, warm, beta: min(1.0, t / warm) * beta,
    states="(115): β_min = 0, β_max = 0.999",
    note="A choice, for which no reason is given: a passive average leaves training as it is. The rate rises as t², where "
    "§17.4 has t, and stays at β_max·η₀: 10 % lower for β_max = 0.9, and zero without an average (β = 0).",
)
def combined(rate: Form, effort: Effort) -> Outcome:
    rates = np.array([rate(t, 100, _ramp(t, 100)) for t in range(201)])
    return defined(
        bool(
            rates[0] == 0
            and (np.diff(rates) >= 0).all()
            and 0.99 < rates[100] <= 1
            and rates[200] == rates[100]
        ),
        "from 0, never falling, to η₀ (nearly) at T_warm and after",
        f"{rates[0]:g}, {number(float(rates[50]))}, {rates[100]:g}, {rates[200]:g} η₀ at 0, T_warm/2, T_warm, 2 T_warm",
    )


@statement(
    "17.3-table",
    section="17.3",
    says="ResNet-50: top-1 76.1, 76.3, 76.5 for SGD, a fixed β, a ramped β.",
    verdict=EMPIRICAL,
    method="the numbers against those that the table judges",
    printed=WARMUP,
    table="ema_warmup",
)
def warmup_numbers(rows: Form, effort: Effort) -> Outcome:
    return same_as_table(rows, "ema_warmup")


@statement(
    "17.3-slower",
    section="17.3",
    says="A fixed β slows convergence from 90 to 92 epochs.",
    verdict=CONDITIONAL,
    method="lag of the average, in epochs of ImageNet at a batch of 256",
    printed=EPOCHS["fixed"] - EPOCHS["sgd"],
    corrected=r"\text{a lag of } 1/(1-\beta) = 1000 \text{ steps, } 0.2 \text{ epochs; training itself is not slowed at all}",
    right=0.2,
    states="β = 0.999; 5004 steps an epoch",
    needs="β is 0.9999, not the 0.999 that §17.3 names as typical, and it is the average that comes late",
    table="ema_warmup",
)
def slower(epochs: Form, effort: Effort) -> Outcome:
    lag, longer = (beta / (1 - beta) / 5004 for beta in (0.999, 0.9999))
    return conditional(
        abs(epochs / lag - 1) < 0.1,
        abs(epochs / longer - 1) < 0.1,
        f"{number(lag)} epochs behind weights that move steadily, {number(longer)} at β = 0.9999",
        f"{epochs:g}",
    )


def _steps_until(high: float | None, excess: float = 1.05) -> int:
    """Steps of SGD on a quadratic until the loss is `excess` times its floor: of the weights, or their ramped average."""
    eta, warm, noise = 0.05, 20, 1.0
    moments = np.full((2, 2), 100.0)  # θ, EMA
    floor = eta**2 * noise / (1 - (1 - eta) ** 2)
    for t in range(1, 1000):
        beta = 0.0 if high is None else _ramp(t, warm, high=high)
        A = np.array([[1 - eta, 0.0], [(1 - beta) * (1 - eta), beta]])
        b = eta * math.sqrt(noise) * np.array([1.0, 1 - beta])
        moments = A @ moments @ A.T + np.outer(b, b)
        if moments[1, 1] <= excess * floor:
            return t
    return 1000


@statement(
    "17.3-faster",
    section="17.3",
    says="A ramped β shortens convergence from 90 to 85 epochs.",
    verdict=CONDITIONAL,
    method="exact second moments of SGD and of a ramped average on a quadratic",
    printed=EPOCHS["sgd"] - EPOCHS["linear"],
    needs="it is the average that arrives, at a level near the floor of the weights' noise, and the rate is not annealed; "
    "training itself takes as many steps as before",
    table="ema_warmup",
    note="The sign can be checked, the five epochs are a measurement.",
)
def faster(epochs: Form, effort: Effort) -> Outcome:
    plain, ramped = _steps_until(None), _steps_until(0.9)
    training = plain  # the average is passive: the weights take as many steps with one
    return conditional(
        (training < plain) == (epochs > 0),
        (ramped < plain) == (epochs > 0),
        f"{epochs:g} epochs fewer",
        f"{ramped} steps of the average, {training} of the weights, {plain} without an average",
    )


@statement(
    "17.3-final",
    section="17.3",
    says="A ramped β ends 0.2 points above the same β fixed.",
    verdict=WRONG,
    method="weights of both averages after 450 000 steps",
    printed=WARMUP["linear"]["top1"] - WARMUP["fixed"]["top1"],
    corrected=r"\text{no difference: the two averages differ by } \beta^{0.9T}\approx 10^{-176} \text{ of their weight}",
    right=0.0,
    states="β_max = 0.999, T_warm = 0.1 T",
    table="ema_warmup",
    note="After a thousand steps both have forgotten how they began. A difference can only be early.",
)
def final_difference(points: Form, effort: Effort) -> Outcome:
    T, warm = 450_000, 45_000
    fixed = np.array(ema_weights([0.999] * T))
    ramped = np.array(ema_weights([_ramp(t, warm) for t in range(1, T + 1)]))
    apart = float(np.abs(fixed - ramped).sum() / 2)
    possible = 100 * apart  # points: the averaged weights are the same but for this share
    return truth(
        abs(points) <= max(possible, 1e-9),
        f"at most {number(possible)} points: the averages share all but {number(apart)} of their weights",
        f"{points:.1f} points",
    )


def _betas(peak_in_ramp: float, main: float) -> Form:
    return lambda step, total: peak_in_ramp * (step / int(0.1 * total)) if step < int(0.1 * total) else main


@statement(
    "17.4-jump",
    section="17.4",
    says="The code's β is that of the text: linear in the warm-up to the value that it keeps (115).",
    verdict=CONDITIONAL,
    method="the largest change of β from one step to the next; the stages of §17.4",
    printed=_betas(0.99, 0.999),
    corrected=r"\beta=0.999\cdot\text{step}/\text{warmup\_steps in the warm-up, then } 0.999",
    right=_betas(0.999, 0.999),
    states="(115)",
    needs="the stages of §17.4 count, not (115): a ramp to 0.99, then “0.99 (or 0.999)”",
    note="It ramps to 0.99 and then jumps to 0.999: the window grows tenfold in one step.",
)
def jump(beta: Form, effort: Effort) -> Outcome:
    values = np.array([beta(step, 1000) for step in range(1000)])
    changes = np.diff(values)
    ramp = float(np.median(changes[:98]))
    end = float(changes[99])
    stages = np.allclose(values[:100], 0.99 * np.arange(100) / 100) and set(values[100:]) in ({0.99}, {0.999})
    return conditional(
        abs(end - ramp) < 0.1 * ramp,
        stages,
        f"{number(ramp)} in every step of the ramp",
        f"{number(end)} at its end, then {values[-1]:g}",
    )


@statement(
    "17.4-rate",
    section="17.4",
    says="The learning rate warms up linearly and then falls by a cosine to zero, without a jump.",
    verdict=HOLDS,
    method="values at the ends, continuity",
    printed=lambda step, total: (
        step / int(0.1 * total)
        if step < int(0.1 * total)
        else 0.5 * (1 + math.cos(math.pi * (step - int(0.1 * total)) / (total - int(0.1 * total))))
    ),
    note="The first step has a rate of zero and β = 0: it does nothing.",
)
def rate_schedule(rate: Form, effort: Effort) -> Outcome:
    values = np.array([rate(step, 1000) for step in range(1001)])
    ok = (
        values[0] == 0
        and math.isclose(values[100], 1)
        and values[1000] < 1e-12
        and float(np.abs(np.diff(values)).max()) < 0.0101
    )
    return truth(
        ok,
        "0, then η₀ at the end of the warm-up, then 0",
        f"{values[0]:g}, {values[100]:g}, {number(float(values[1000]))}; largest change {number(float(np.abs(np.diff(values)).max()))}",
    )


@statement(
    "17.4-listing",
    section="17.4",
    says="The training loop trains, averages with a dynamic decay, evaluates the average, and switches back.",
    formula=TRAINING_LOOP,
    listing=True,
    verdict=WRONG,
    method="run as printed with the class of §9.2, every undefined name given",
    printed=EMA_CLASS + "\n" + TRAINING_LOOP,
    corrected=TRAINING_LOOP_RIGHT,
    right=EMA_CLASS_RIGHT + "\n" + TRAINING_LOOP_RIGHT,
    note="EMA.update() takes no decay, EMA.restore() does not exist; lr_base, param_dim, sqrt, cos and pi are nowhere set.",
)
def training_loop(source: Form, effort: Effort) -> Outcome:
    import inspect

    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 1).double()

        def forward(self, x: Any) -> Any:
            return ((self.linear(x) - x.sum(1, keepdim=True)) ** 2).mean()

    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = {
        "torch": torch,
        "sqrt": math.sqrt,
        "cos": math.cos,
        "pi": math.pi,
        "lr_base": 0.1,
        "param_dim": 5,
    }
    loop_class = executed(source, **given)["TrainingLoop"]
    options = {"lr_base": 0.1} if "lr_base" in inspect.signature(loop_class).parameters else {}
    batches = [torch.randn(8, 4, dtype=torch.float64) for _ in range(20)]
    problem, kept, before = "", False, model(batches[0]).item()
    try:
        loop = loop_class(model, optimizer, **options)
        for step, batch in enumerate(batches):
            loop.train_step(batch, step, len(batches))
        weights = model.linear.weight.detach().clone()
        loop.evaluate(batches[:2])
        kept = torch.equal(model.linear.weight, weights)
    except (TypeError, AttributeError, NameError) as error:
        problem = f"{type(error).__name__}: {error}"
    learnt = model(batches[0]).item() < before
    return truth(
        not problem and kept and learnt,
        "20 steps and an evaluation; training weights back afterwards",
        problem or f"runs; loss fell: {learnt}; training weights back: {kept}",
    )


@statement(
    "17.4-batchnorm",
    section="17.4",
    says="For the evaluation BatchNorm uses the statistics of training.",
    verdict=WRONG,
    method="variance that BatchNorm's output has with the averaged weights, exactly",
    printed="training",
    corrected=r"\text{recompute the statistics with the averaged weights (SWA's bn\_update), or average them too}",
    right="recomputed",
    note="Averaged weights are shorter than the noisy ones the running variance was taken of: the output shrinks.",
)
def batchnorm_statistics(which: Form, effort: Effort) -> Outcome:
    rng, d = effort.rng, 50
    centre = rng.normal(size=d)
    path = centre + 1.0 * rng.normal(
        size=(3000, d)
    )  # stationary weights around it; inputs of unit covariance
    average = ema(path, 0.99, centre)[-1]
    running = ema([float(w @ w) for w in path], 0.9, 0.0)[-1]  # variance of w·x, as BatchNorm keeps it
    used = {"training": running, "recomputed": float(average @ average)}[which]
    variance = float(average @ average) / used
    return truth(abs(variance - 1) < 0.05, "outputs of variance 1", number(variance))


@statement(
    "17.4-by-task",
    section="17.4",
    says="The quick table agrees with §9.1's ranges by task.",
    verdict=HOLDS,
    method="the two tables of the article",
    printed={"classification": QUICK["ImageNet"][2], "generative": QUICK["diffusion"][2]},
    states="§9.1",
)
def quick_table_agrees(rows: Form, effort: Effort) -> Outcome:
    inside = {task: BY_TASK[task][0] <= beta <= BY_TASK[task][1] for task, beta in rows.items()}
    return truth(
        all(inside.values()),
        "each β inside its range",
        ", ".join(f"{task} {rows[task]:g}: {ok}" for task, ok in inside.items()),
    )


@statement(
    "17.4-quick",
    section="17.4",
    says="Batch sizes, rates, decays and warm-ups of four tasks.",
    verdict=EMPIRICAL,
    method="the row of BERT against the published settings",
    printed=QUICK,
    table="bert",
    note="BERT's row is the published one but for the EMA, which BERT has not. DDPM on CIFAR-10 is published with 2·10⁻⁴ and "
    "5000 steps; ViT fine-tuning with SGD, 0.01 to 0.03.",
)
def quick_numbers(rows: Form, effort: Effort) -> Outcome:
    published = {"BERT": (256, 1e-4), "ImageNet": (256, 0.1), "diffusion": (128, 2e-4)}
    same = [name for name, (size, rate) in published.items() if rows[name][:2] == (size, rate)]
    return reported(
        "BERT" in same,
        "batch size and rate of BERT as published",
        f"as published: {', '.join(same)}; not: {', '.join(sorted(set(published) - set(same)))}",
    )


@statement(
    "17.4-warmup",
    section="17.4",
    says="The warm-up takes the first 10 % of the steps.",
    verdict=WRONG,
    method="the quick table's own rows",
    printed=(0.1, 0.1),
    corrected=r"0.1\text{ to } 6\,\%\text{ of training, by the quick table}",
    right=(0.001, 0.06),
    states="the quick table of §17.4; 90 epochs, 10⁶ and 8·10⁵ steps",
)
def warmup_share(between: Form, effort: Effort) -> Outcome:
    shares = {name: row[3] for name, row in QUICK.items()}
    return truth(
        all(between[0] * 0.99 <= s <= between[1] * 1.01 for s in shares.values()),
        ", ".join(f"{name} {percent(s)}" for name, s in shares.items()),
        f"{percent(between[0])} to {percent(between[1])}",
    )


@statement(
    "17.4-batch-size",
    section="17.4",
    says="Large batches want a small β, small ones a large β.",
    verdict=HOLDS,
    method="the decay that keeps the window in samples (Busbridge et al. 2023)",
    printed=lambda beta, times: beta**times,
    states="the window in samples is to stay",
)
def batch_and_decay(decay: Form, effort: Effort) -> Outcome:
    rows = {k: decay(0.999, k) for k in (0.25, 1.0, 4.0)}
    windows = {k: k * math.log(2) / -math.log(b) for k, b in rows.items()}
    same = all(math.isclose(w, math.log(2) / -math.log(0.999)) for w in windows.values())
    return truth(
        same and rows[4.0] < rows[1.0] < rows[0.25],
        "β^κ at κ times the batch: half-life in samples unchanged",
        ", ".join(f"{b:.5f} at {k:g} times" for k, b in rows.items()),
    )


@statement(
    "17.4-generative",
    section="17.4",
    says="Generative models take the largest β, 0.9999 and above.",
    verdict=HOLDS,
    method="§9.1, §8.3 and §16.1 of the article",
    printed=0.9999,
    states="the article's own tables",
)
def generative_largest(beta: Form, effort: Effort) -> Outcome:
    low, high = BY_TASK["generative"]
    others = max(top for task, (_, top) in BY_TASK.items() if task != "generative")
    return truth(
        low <= beta <= high and beta >= others,
        "the generative range, not below any other task's",
        f"{beta:g}; other tasks up to {others:g}",
    )


def _window_figure() -> Curves:
    steps = [k / 100 for k in range(101)]
    return Curves(
        "The window 1/(1 − β) of a linear ramp from 0 to 0.999",
        "t/T_warm",
        "window, steps",
        {"printed": [(s, 1 / (1 - _ramp(s, 1.0))) for s in steps]},
        log_y=True,
    )


@statement(
    "17.4-no-large-beta",
    section="17.4",
    says="Use no large β in the warm-up: 0 to 0.99, linearly.",
    verdict=HOLDS,
    method="weight left on the start at the end of the ramp",
    printed=_ramp,
    note="Linear in β is not linear in the window: at nine tenths of the ramp to 0.999 it is 10 steps of 1000.",
    figure=_window_figure,
)
def no_large_beta(beta: Form, effort: Effort) -> Outcome:
    T = 1000
    ramped = ema_weights([beta(t, T, 0.0, 0.99) for t in range(1, T + 1)])[0]
    fixed = ema_weights([0.9999] * T)[0]
    return truth(
        ramped < 1e-3 < fixed,
        "nothing of the start is left",
        f"{number(ramped)} ramped, {number(fixed)} with β = 0.9999 throughout",
    )
