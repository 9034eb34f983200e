"""Profiles: which weight an average gives to each past step. Pure arithmetic, without torch.

Time is counted in updates. θ_0 are the weights when the average was made, θ_t those after update t = 1, 2, …
An average changes on every `every`-th update after `start`; its k-th change sees θ_{start + k·every} and is

    average ← average + alpha_k · (θ − average)        (the lerp form, eq. 100)

so that a profile is no more than its sequence of `alpha_k`. Up to `start`, and before the first change of a profile
that has no initial weights (uniform mean, debiased EMA), the average is the current weights themselves.

A rule says how it is stepped (`Profile.stepper`) and how it is read (`Profile.read`); the engine knows no kind of
average by name.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from emabench.averaging._checks import (
    check_choice,
    check_count,
    check_fraction_or_count,
    check_number,
    check_options,
)
from emabench.averaging.warmup import Warmup

if TYPE_CHECKING:
    import numpy as np

KINDS: dict[str, type[Profile]] = {}
"""Every kind of profile by the name it has in configurations and results."""

SEARCH: list[Callable[[str], object]] = []
"""Called with each kind that `from_dict` is given: may import the file that defines it."""

RAW = "raw"
"""The name of the current weights, wherever the name of an average may stand."""

GradientNorms = Callable[[], Mapping[str, float]]
"""By layer, the Euclidean norm of the gradients in place; asked for by the rules that depend on them."""


class Step(NamedTuple):
    """What one set of an average's tensors does: moves by each tensor's alpha towards the weights, or another set.

    source: the index of the set it moves towards, after that has moved; None for the weights.
    """

    set: int
    alphas: Sequence[float]
    source: int | None = None


class Stepper:
    """How one average is stepped: made by `Profile.stepper` for the tensors of one model.

    components: the profiles of which each tensor follows one; component: for each tensor, which of them.
    state: by component, the log of the weight left on the initial weights. Replaced, never changed in place, so
    that whoever keeps the one before an update can put it back.
    """

    def __init__(self, profile: Profile, components: Sequence[Profile], component: Sequence[int]) -> None:
        self.profile, self.components, self.component = profile, components, component
        self.state: list[float] = [0.0] * len(components)

    def initial_copies(self, t: int) -> list[int]:
        """The sets that become a copy of the weights after update t."""
        return [0] if self.profile.start == t and self.profile.from_initial else []

    def step(self, k: int, gradient_norms: GradientNorms) -> list[Step]:
        """What change k of the average does, in order. Replaces `state`."""
        steps = [p.advance(k, log) for p, log in zip(self.components, self.state, strict=True)]
        self.state = [log for _, log in steps]
        changed = (k - 1) % self.profile.sets
        return [Step(changed, [steps[i][0] for i in self.component])]

    def state_after(self, k: int) -> list[float]:
        """The state that k changes from the start leave, as far as it does not depend on the training."""
        state = [0.0] * len(self.components)
        for i in range(1, k + 1):
            state = [p.advance(i, log)[1] for p, log in zip(self.components, state, strict=True)]
        return state


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The rule of one average. Immutable; compared by value; made from and turned into plain data.

    start: updates to wait before the average begins (or a share of the run in (0, 1), resolved by `bound`).
    every: the average changes on every so many updates; decays stay per update (β becomes β^every).
    """

    start: int | float = 0
    every: int = 1

    kind: ClassVar[str] = ""
    keeps_snapshots: ClassVar[bool] = False  # a run saves its snapshots, to rebuild other averages from
    needs_gradients: ClassVar[bool] = False

    def __init_subclass__(cls, kind: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if kind:
            taken = KINDS.get(kind)
            if taken and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(f"kind {kind!r} is taken by {taken.__module__}.{taken.__qualname__}")
            cls.kind = kind
            KINDS[kind] = cls

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, numbers.Number) and hasattr(
                value, "item"
            ):  # a number of numpy: plain data are kept
                object.__setattr__(self, f.name, value.item())
        check_fraction_or_count("start", self.start, zero=True)
        if float(self.start).is_integer():
            object.__setattr__(self, "start", int(self.start))
        check_count("every", self.every, 1)

    # -- what the engine asks ---------------------------------------------------------------------------------
    @property
    def from_initial(self) -> bool:
        """Whether the average begins as a copy of the weights at `start` (else its first change replaces it)."""
        return False

    @property
    def sets(self) -> int:
        """How many sets of weights the engine keeps for this average."""
        return 1

    @property
    def needs_compensation(self) -> bool:
        """Whether float32 without compensated summation loses steps: a decay above .99999."""
        return False

    @property
    def combines(self) -> tuple[str, ...]:
        """The names of other averages that this one is put together from when it is read."""
        return ()

    @property
    def is_its_set(self) -> bool:
        """Whether the average, once started, is its one set of tensors and nothing else."""
        return self.sets == 1

    def stepper(self, names: Sequence[str]) -> Stepper:
        """How the average of the tensors with these names is stepped. ValueError for a rule that fits none."""
        return Stepper(self, (self,), [0] * len(names))

    def read(self, t: int) -> dict[int | str, float]:
        """What the average is after t updates: coefficients, sum 1, of its own sets (int) and of averages (str).

        "raw" stands for the current weights.
        """
        return {0: 1.0} if self.started(t) else {RAW: 1.0}

    def sets_in_use(self, t: int) -> int:
        """How many of the sets hold something after t updates; these are saved."""
        return min(self.sets, max(self.updates_done(t), 1)) if self.started(t) else 0

    def advance(self, k: int, log_initial_weight: float) -> tuple[float, float]:
        """(alpha_k, log of the weight left on the initial weights after change k), given that log before it."""
        raise NotImplementedError

    def updates_done(self, t: int) -> int:
        """How many times the average has changed by update t."""
        return max(0, t - int(self.start)) // self.every

    def started(self, t: int) -> bool:
        """Whether after t updates the average is something else than the current weights."""
        return self.updates_done(t) > 0 or (self.from_initial and t >= self.start)

    # -- what a reader asks -----------------------------------------------------------------------------------
    def weights(self, T: int) -> np.ndarray:
        """The weight of each step after T updates: float64 [T + 1], entry 0 for the initial weights, sum 1."""
        import numpy as np

        check_count("T", T, 0)
        self._require_bound()
        given = np.zeros(T + 1)
        if not self.started(T):
            given[T] = 1.0
            return given
        alpha = self.alphas(self.updates_done(T))
        remaining = np.append(
            np.cumprod((1.0 - alpha)[::-1])[::-1], 1.0
        )  # what later changes leave of change k − 1
        start = int(self.start)
        given[start] = remaining[0]
        given[start + self.every :: self.every][: len(alpha)] = alpha * remaining[1:]
        return given

    def alphas(self, n: int) -> np.ndarray:
        """alpha_1 … alpha_n: `advance` from the start, float64 [n]."""
        import numpy as np

        alpha = np.empty(n)
        log_initial_weight = 0.0
        for k in range(1, n + 1):
            alpha[k - 1], log_initial_weight = self.advance(k, log_initial_weight)
        return alpha

    def describe(self, T: int | None = None) -> dict[str, float]:
        """What the knobs mean, in updates, after T updates.

        half_life: age within which half of the weight lies (eq. 7 for an EMA); centre_of_mass: mean age (the
        window is one more, see `window_of`);
        effective_samples: 1/Σw² (eq. 6 meant this); start_weight: weight left on the weights it began from;
        share: centre of mass as a share of T.
        """
        if T is None:
            raise ValueError(f"T=None: say after how many updates {self.kind!r} is to be described")
        w = self.weights(T)
        age = w[::-1]
        mass = age.cumsum()
        i = int((mass >= 0.5).argmax())  # weights may be negative, and what lies within an age fall again
        before = mass[i - 1] if i else 0.0
        centre = float((age * range(T + 1)).sum())
        return {
            "half_life": i + float((0.5 - before) / age[i]),
            "centre_of_mass": centre,
            "effective_samples": float(1.0 / (w * w).sum()),
            "start_weight": float(w[int(self.start)]) if self.from_initial and self.started(T) else 0.0,
            "share": centre / T if T else 0.0,
        }

    def effective_window(self, T: int | None = None) -> float:
        """The averaging window after T updates, see `window_of`."""
        return self.describe(T)["centre_of_mass"] + 1.0

    # -- plain data -------------------------------------------------------------------------------------------
    @classmethod
    def expand(cls, name: str, plain: Mapping[str, Any]) -> dict[str, Profile]:
        """The averages that an entry of a configuration asks for; a kind may make several of one."""
        return {name: from_dict(plain)}

    def to_dict(self) -> dict[str, Any]:
        """{"kind": …} and every option that differs from its default; `from_dict` takes it back."""
        plain: dict[str, Any] = {"kind": self.kind}
        for f in fields(self):
            value = getattr(self, f.name)
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            if value != default:
                plain[f.name] = _plain(value)
        return plain

    def bound(
        self, *, steps: int | None = None, batch_size: int | None = None, steps_per_epoch: float | None = None
    ) -> Self:
        """The same profile with everything that is relative to a run made a number of updates.

        steps: length of the run in updates; batch_size: samples per update; steps_per_epoch: updates per epoch.
        """
        if 0 < self.start < 1:
            return replace(self, start=round(self.start * _known("start", self.start, "steps", steps)))
        return self

    def unbound(self) -> str:
        """The first option that still waits for `bound`, as "option=value", else ""."""
        return f"start={self.start}" if 0 < self.start < 1 else ""

    def _require_bound(self) -> None:
        if waiting := self.unbound():
            raise ValueError(f"{waiting} is relative to the run: call .bound(steps=…) on the profile first")


def window_of(described: Mapping[str, float]) -> float | None:
    """The averaging window in updates, from what `describe` gave: the mean age of the weights + 1.

    This is the one definition that tables, reports and post-hoc curves use. An EMA has 1/(1 − β), the effective
    window of the article's §1.3 and the EMA literature; the weights themselves have 1; a uniform mean of n has
    (n + 1)/2; so averages with the same window lag training by the same number of updates. It can be below 1 where
    weights are negative (BEMA). None if unknown.
    """
    centre = described.get("centre_of_mass")
    return None if centre is None else centre + 1.0


def window_of_decay(decay: float) -> float:
    """`window_of` an EMA that has run long: 1/(1 − β)."""
    return 1.0 / (1.0 - decay)


def expand(name: str, plain: Mapping[str, Any] | Profile) -> dict[str, Profile]:
    """The averages by name that the entry `name: plain` of a configuration asks for; some kinds make several."""
    if isinstance(plain, Profile):
        return {name: plain}
    for search in SEARCH:
        search(str(plain.get("kind")))
    kind = KINDS.get(str(plain.get("kind")))
    return kind.expand(name, plain) if kind else {name: from_dict(plain)}


def from_dict(plain: Mapping[str, Any] | Profile) -> Profile:
    """The profile that `plain` describes: {"kind": "ema", "decay": 0.999, …}. ValueError for unknown words."""
    if isinstance(plain, Profile):
        return plain
    options = dict(plain)
    if "kind" not in options:
        raise ValueError(f"average {options!r} has no kind; known: {', '.join(sorted(KINDS))}")
    kind = options.pop("kind")
    for search in SEARCH:
        search(kind)
    check_choice("kind", kind, KINDS)
    check_options(f"an average of kind {kind!r}", options, [f.name for f in fields(KINDS[kind])])
    return KINDS[kind](**options)


@dataclass(frozen=True)
class EMA(Profile, kind="ema"):
    """Exponential moving average, eq. (1): average ← β·average + (1 − β)·θ.

    Exactly one of: decay β in [0, 1); half_life ln 2/ln(1/β) (eq. 7); window 1/(1 − β); share, the window as a
    share of the run. half_life and window are counted in `unit`: "steps" (updates), "samples" or "epochs".
    debias: start from zero and divide by 1 − Πβ (eq. 3 corrected), so that the initial weights weigh nothing;
    else the average starts from the weights at `start`.
    warmup: a ramp of β, see `Warmup`; a number of updates means a linear one.
    With every=m, a change keeps what m updates would keep: Π of their m decays, β^m at a constant decay.
    """

    decay: float | None = None
    half_life: float | None = None
    window: float | None = None
    share: float | None = None
    unit: str = field(default="steps", kw_only=True)
    debias: bool = field(default=False, kw_only=True)
    warmup: Warmup | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [n for n in ("decay", "half_life", "window", "share") if getattr(self, n) is not None]
        if len(given) != 1:
            stated = ", ".join(f"{n}={getattr(self, n)!r}" for n in given) or "none of them"
            raise ValueError(f"an EMA takes exactly one of decay, half_life, window and share; got {stated}")
        if self.decay is not None:
            check_number("decay", self.decay, 0.0, 1.0, "a number in [0, 1), like 0.999", high_open=True)
        if self.half_life is not None:
            right = f"a number of {self.unit} above 0"
            check_number("half_life", self.half_life, 0.0, math.inf, right, low_open=True, high_open=True)
        if self.window is not None:
            right = f"a number of {self.unit}, at least one update"
            least = 1.0 if self.unit == "steps" else 0.0
            check_number("window", self.window, least, math.inf, right, low_open=not least, high_open=True)
        if self.share is not None:
            check_number("share", self.share, 0.0, 1.0, "a share of the run in (0, 1]", low_open=True)
        check_choice("unit", self.unit, ("steps", "samples", "epochs"))
        if not isinstance(self.debias, bool):
            raise ValueError(f"debias={self.debias!r}: give true or false")
        object.__setattr__(self, "warmup", Warmup.of(self.warmup))

    @property
    def from_initial(self) -> bool:
        return not self.debias

    @property
    def needs_compensation(self) -> bool:
        return self.beta > 0.99999

    @property
    def log_decay(self) -> float:
        """ln β of one update, −inf for β = 0. Kept as a logarithm so that 1 − β^m loses no digits."""
        self._require_bound()
        if self.half_life is not None:
            return -math.log(2.0) / self.half_life
        beta = 1.0 - 1.0 / self.window if self.window is not None else self.decay
        return math.log(beta) if beta else -math.inf

    @property
    def beta(self) -> float:
        """The final decay β of one update, however it was given."""
        return self.decay if self.decay is not None else math.exp(self.log_decay)

    def log_decay_at(self, k: int) -> float:
        """ln of the decay of change k: the sum of ln β_t over the updates since the last change."""
        if self.warmup is None:
            return self.every * self.log_decay
        beta, last = self.beta, k * self.every
        decays = [self.warmup.decay(t, beta) for t in range(last - self.every + 1, last + 1)]
        return math.fsum(map(math.log, decays)) if min(decays) > 0 else -math.inf

    def advance(self, k: int, log_initial_weight: float) -> tuple[float, float]:
        log_decay = self.log_decay_at(k)
        log_initial_weight += log_decay
        alpha = -math.expm1(log_decay)
        return (alpha / -math.expm1(log_initial_weight) if self.debias else alpha), log_initial_weight

    def alphas(self, n: int) -> np.ndarray:
        import numpy as np

        if self.warmup is not None:
            return super().alphas(n)
        log_decay = self.every * self.log_decay
        alpha = np.full(n, -math.expm1(log_decay))
        return alpha / -np.expm1(log_decay * np.arange(1.0, n + 1.0)) if self.debias else alpha

    def describe(self, T: int | None = None) -> dict[str, float]:
        """As Profile.describe; with T left out, of a plain EMA that has run for ever."""
        if T is not None or type(self).advance is not EMA.advance or type(self).weights is not EMA.weights:
            return super().describe(T)
        beta, log_decay = self.beta, self.log_decay
        return {
            "half_life": math.log(2.0) / -log_decay,
            "centre_of_mass": self.every
            * math.exp(self.every * log_decay)
            / -math.expm1(self.every * log_decay)
            if beta
            else 0.0,
            "effective_samples": (1 + math.exp(self.every * log_decay)) / -math.expm1(self.every * log_decay),
            "start_weight": 0.0,
        }

    def bound(
        self, *, steps: int | None = None, batch_size: int | None = None, steps_per_epoch: float | None = None
    ) -> Self:
        new = super().bound(steps=steps)
        if new.share is not None:
            window = max(1.0, new.share * _known("share", new.share, "steps", steps))
            new = replace(new, share=None, window=window)
        if new.unit != "steps":
            name, size = ("half_life", new.half_life) if new.half_life is not None else ("window", new.window)
            if size is None:  # a decay is per update whatever the unit
                new = replace(new, unit="steps")
            elif new.unit == "samples":
                size /= _known(name, size, "batch_size", batch_size)
            else:
                size *= _known(name, size, "steps_per_epoch", steps_per_epoch)
            if size is not None:
                changed: dict[str, Any] = {name: max(1.0, size) if name == "window" else size}
                new = replace(new, unit="steps", **changed)
        if new.warmup is not None and new.warmup.relative:
            share = new.warmup.steps
            updates = max(1, round(share * _known("warmup.steps", share, "steps", steps)))
            new = replace(new, warmup=replace(new.warmup, steps=updates))
        return new

    def unbound(self) -> str:
        if self.share is not None:
            return f"share={self.share}"
        if self.unit != "steps" and self.decay is None:
            return f"half_life={self.half_life}" if self.half_life is not None else f"window={self.window}"
        if self.warmup is not None and self.warmup.relative:
            return f"warmup.steps={self.warmup.steps}"
        return super().unbound()


@dataclass(frozen=True)
class Mean(Profile, kind="mean"):
    """Uniform mean of θ_t for t = start + every, start + 2·every, …: Polyak averaging, SWA (eq. 24).

    SWA once per cycle is `every` = length of the cycle.
    """

    def advance(self, k: int, log_initial_weight: float) -> tuple[float, float]:
        return 1.0 / k, -math.inf

    def alphas(self, n: int) -> np.ndarray:
        import numpy as np

        return 1.0 / np.arange(1.0, n + 1.0)


def _known(option: str, value: object, name: str, given: float | None) -> float:
    if given is None or given <= 0:
        raise ValueError(f"{option}={value!r} needs {name} to be known and positive, got {name}={given!r}")
    return given


def _plain(value: Any) -> Any:
    if isinstance(value, (Profile, Warmup)):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
