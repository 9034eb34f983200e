"""Weight averaging: profiles (which past step weighs what) and the engine that carries them along a training.

    averager = Averager(model, {"ema": EMA(decay=0.999), "swa": Mean(start=1000)})
    averager.update()                                   # after optimizer.step()
    with averager.applied("ema"): evaluate(model)
    averager.export("ema")                              # a state_dict of the averaged model

Profiles need no torch; the rest is imported when it is first asked for, so that a configuration can be checked
in milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from emabench.averaging._checks import NotFinite
from emabench.averaging.annealing import Annealing, merge_weights
from emabench.averaging.blends import BEMA, EMAOfEMA, TailBlend
from emabench.averaging.families import LAWA, PowerEMA, SqrtEMA
from emabench.averaging.layers import ArticleEq26, ArticleEq37, GradientNorm, GradientShare, PerLayer
from emabench.averaging.mixture import Mixture
from emabench.averaging.profiles import EMA, KINDS, Mean, Profile, from_dict
from emabench.averaging.scoring import blend_curve, greedy
from emabench.averaging.warmup import Warmup

if TYPE_CHECKING:
    from emabench.averaging.averager import Averager
    from emabench.averaging.batchnorm import has_batchnorm, recalibrate
    from emabench.averaging.lookahead import Lookahead
    from emabench.averaging.target import TargetNetwork

__all__ = [
    "BEMA",
    "EMA",
    "KINDS",
    "LAWA",
    "Annealing",
    "ArticleEq26",
    "ArticleEq37",
    "Averager",
    "EMAOfEMA",
    "GradientNorm",
    "GradientShare",
    "Lookahead",
    "Mean",
    "Mixture",
    "NotFinite",
    "PerLayer",
    "PowerEMA",
    "Profile",
    "SqrtEMA",
    "TailBlend",
    "TargetNetwork",
    "Warmup",
    "blend_curve",
    "from_dict",
    "greedy",
    "has_batchnorm",
    "merge_weights",
    "recalibrate",
]

_WITH_TORCH = {
    "Averager": "averager",
    "Lookahead": "lookahead",
    "TargetNetwork": "target",
    "has_batchnorm": "batchnorm",
    "recalibrate": "batchnorm",
}


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        return getattr(importlib.import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
