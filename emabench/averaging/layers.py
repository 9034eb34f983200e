"""Averages whose decay differs between layers: by name, or by the gradients.

A layer is a module that holds parameters: "encoder.0" for "encoder.0.weight" and "encoder.0.bias".
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Self

from emabench.averaging._checks import NotFinite, check_number
from emabench.averaging.profiles import GradientNorms, Profile, Step, Stepper, from_dict

if TYPE_CHECKING:
    import numpy as np


def matches(name: str, pattern: str) -> bool:
    """Whether a tensor's name fits a pattern; "*.mask" fits "mask" as well as "block.mask"."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(f".{name}", pattern)


@dataclass(frozen=True)
class PerLayer(Profile, kind="per_layer"):
    """One profile by name pattern: `rules` maps a pattern ("head.*") to a profile, `default` takes the rest.

    The first pattern that matches a tensor's name decides. All profiles share `start`, `every` and whether they
    begin from the initial weights, for the average must begin everywhere at once; `start` and `every` are the
    default's.
    """

    default: Profile = field(default=None)  # type: ignore[assignment]
    rules: Mapping[str, Profile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.default is None:
            raise ValueError("default=None: give the profile of tensors that no rule names")
        if not isinstance(self.rules, Mapping):
            raise ValueError(f"rules={self.rules!r}: give a mapping from name patterns to profiles")
        object.__setattr__(self, "default", from_dict(self.default))
        object.__setattr__(self, "rules", {pattern: from_dict(rule) for pattern, rule in self.rules.items()})
        for pattern, rule in [("default", self.default), *self.rules.items()]:
            if isinstance(rule, (PerLayer, GradientProfile)) or not rule.is_its_set:
                raise ValueError(f"{pattern!r}: a {rule.kind!r} cannot be the rule of a layer")
            for name in ("start", "every", "from_initial"):
                own, shared = getattr(rule, name), getattr(self.default, name)
                if own != shared:
                    raise ValueError(f"{pattern!r}: {name}={own} differs from the default's {name}={shared}")
        object.__setattr__(self, "start", self.default.start)
        object.__setattr__(self, "every", self.default.every)
        super().__post_init__()

    @classmethod
    def with_rules(cls, profile: Profile, rules: Mapping[str, Profile]) -> PerLayer:
        """`profile`, with rules of their own for names that it has no rule for."""
        if isinstance(profile, PerLayer):
            return cls(
                default=profile.default,
                rules={**profile.rules, **{k: v for k, v in rules.items() if k not in profile.rules}},
            )
        return cls(default=profile, rules=rules)

    @property
    def from_initial(self) -> bool:
        return self.default.from_initial

    @property
    def needs_compensation(self) -> bool:
        return any(component.needs_compensation for component in self.components)

    @property
    def components(self) -> tuple[Profile, ...]:
        """The default's profile, then that of each rule."""
        return (self.default, *self.rules.values())

    def component_of(self, name: str) -> int:
        """Which of `components` the tensor called `name` follows."""
        for i, pattern in enumerate(self.rules, 1):
            if matches(name, pattern):
                return i
        return 0

    def stepper(self, names: Sequence[str]) -> Stepper:
        component = [self.component_of(name) for name in names]
        for i, pattern in enumerate(self.rules, 1):
            if i not in component:
                raise ValueError(f"no tensor follows the rule {pattern!r}")
        return Stepper(self, self.components, component)

    def weights(self, T: int) -> np.ndarray:
        """The default's weights; `components` holds the others'."""
        return self.default.weights(T)

    def bound(
        self, *, steps: int | None = None, batch_size: int | None = None, steps_per_epoch: float | None = None
    ) -> Self:
        run = {"steps": steps, "batch_size": batch_size, "steps_per_epoch": steps_per_epoch}
        bound = [component.bound(**run) for component in self.components]  # type: ignore[arg-type]
        return replace(self, default=bound[0], rules=dict(zip(self.rules, bound[1:], strict=True)))

    def unbound(self) -> str:
        return next(filter(None, (component.unbound() for component in self.components)), "")


class GradientProfile(Profile):
    """An EMA from the initial weights whose decay depends on the gradients at the time of `update()`.

    Its weights are known only once training has been, so `weights` raises ValueError.
    """

    needs_gradients: ClassVar[bool] = True

    @property
    def from_initial(self) -> bool:
        return True

    def decays(self, norms: Mapping[str, float]) -> dict[str, float]:
        """The decay of each layer, from the Euclidean norm of each layer's gradient."""
        raise NotImplementedError

    def stepper(self, names: Sequence[str]) -> Stepper:
        return _GradientStepper(self, names)

    def alpha_by_layer(self, norms: Mapping[str, float]) -> dict[str, float]:
        """What each layer takes of the current weights in one change: 1 − β^every. NotFinite for norms that are not."""
        for layer, norm in norms.items():
            if not math.isfinite(norm):
                raise NotFinite(
                    f"the gradient of {layer!r} is not finite: {self.kind!r} cannot set a decay by it"
                )
        return {layer: 1.0 - beta**self.every for layer, beta in self.decays(norms).items()}

    def weights(self, T: int) -> np.ndarray:
        raise ValueError(f"the weights of {self.kind!r} depend on the gradients of a training")


class _GradientStepper(Stepper):
    """Steps each layer by the norm of its gradient; a layer without one counts as norm 0."""

    def __init__(self, profile: GradientProfile, names: Sequence[str]) -> None:
        super().__init__(profile, (), [])
        self.rule, self.layers = profile, [name.rpartition(".")[0] for name in names]

    def step(self, k: int, gradient_norms: GradientNorms) -> list[Step]:
        norms = gradient_norms()
        alpha = self.rule.alpha_by_layer({layer: norms.get(layer, 0.0) for layer in self.layers})
        return [Step(0, [alpha[layer] for layer in self.layers])]


@dataclass(frozen=True)
class _ByShare(GradientProfile):
    decay: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("decay", self.decay, 0.0, 1.0, "a number in [0, 1), like 0.999", high_open=True)

    def decays(self, norms: Mapping[str, float]) -> dict[str, float]:
        total = math.fsum(norms.values())
        equal = 1.0 / max(1, len(norms))
        return {
            layer: self._beta(norm / total if total else equal, len(norms)) for layer, norm in norms.items()
        }

    def _beta(self, share: float, layers: int) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class ArticleEq26(_ByShare, kind="article_eq26"):
    """Eq. (26) as printed: β_l = β₀ exp(−share_l). It shortens every window to about the number of layers."""

    def _beta(self, share: float, layers: int) -> float:
        return self.decay * math.exp(-share)


@dataclass(frozen=True)
class GradientShare(_ByShare, kind="gradient_share"):
    """What eq. (26) is meant for: layers with more than their share of the gradient forget faster.

    1 − β_l = (1 − β₀) exp(L·share_l − 1), at most 1, for L layers: a layer with an equal share keeps β₀, so that β₀
    sets the window and the shares only spread it.
    """

    def _beta(self, share: float, layers: int) -> float:
        return 1.0 - min(1.0, (1.0 - self.decay) * math.exp(layers * share - 1.0))


@dataclass(frozen=True)
class _ByNorm(GradientProfile):
    c: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(
            "c", self.c, 0.0, 1.0, "a number in (0, 1], the share taken at a gradient of zero", low_open=True
        )

    def decays(self, norms: Mapping[str, float]) -> dict[str, float]:
        total = math.hypot(*norms.values())
        return dict.fromkeys(norms, self._beta(math.hypot(1.0, total)))

    def _beta(self, root: float) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class ArticleEq37(_ByNorm, kind="article_eq37"):
    """Eq. (37) as printed: β = 1 − c/√(1 + ‖g‖²), which RISES with the gradient, against its purpose."""

    def _beta(self, root: float) -> float:
        return 1.0 - self.c / root


@dataclass(frozen=True)
class GradientNorm(_ByNorm, kind="gradient_norm"):
    """Eq. (37) with its sign corrected: β = max(0, 1 − c·√(1 + ‖g‖²)), short windows while gradients are large."""

    def _beta(self, root: float) -> float:
        return max(0.0, 1.0 - self.c * root)
