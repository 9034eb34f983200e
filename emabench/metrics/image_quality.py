"""FID, inception score and KID of sampled images.

Colour images are measured in Inception-v3's features, as published numbers are (`inception.py`); small grey ones in
those of a classifier of our own (`features.py`). The network's label is part of the result and decides what may be
compared. FID and IS are torchmetrics', which sees features and logits of one pass through the network.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from emabench import seeding
from emabench.data.images import Images
from emabench.metrics.features import feature_net
from emabench.metrics.inception import Inception
from emabench.metrics.precision import full_precision

BATCH = 500  # images through the network at a time
BLOCK = 4096  # rows of a kernel matrix at a time


class ImageQuality:
    """FID and KID against a set of real images, and IS, of uint8 images (N, C, H, W)."""

    def __init__(self, real: Images, device: torch.device, cache: Path, inception: str | None) -> None:
        self.real, self.device = real, device
        network: Any = (
            Inception(inception)
            if real.images.shape[1] == 3
            else feature_net(real.images, real.labels, real.classes, cache)
        )
        self.network = network.to(device)
        self.label: str = network.label
        self._real: tuple[Tensor, Tensor] | None = None  # features and logits, once they are needed

    def measure(self, images: Tensor) -> dict[str, float]:
        """{"fid", "is", "kid"} of sampled images.

        FID is an estimate that can fall below zero by rounding, where both sets are the same; it is not cut off.
        """
        features, logits = self._outputs(images)
        real = self._real_outputs()[0]
        return {
            "fid": frechet_distance(real, features),
            "is": inception_score(logits),
            "kid": kid(real, features),
        }

    def references(self) -> dict[str, float]:
        """IS of the real images, and FID and KID between two random halves of them: the floor for any sampler."""
        features, logits = self._real_outputs()
        order = torch.randperm(len(self.real), generator=seeding.generator(0, "halves"))
        half = len(order) // 2
        one, two = features[order[:half]], features[order[half : 2 * half]]
        return {
            "is_real": inception_score(logits),
            "fid_real_halves": frechet_distance(one, two),
            "kid_real_halves": kid(one, two),
        }

    def _real_outputs(self) -> tuple[Tensor, Tensor]:
        if self._real is None:
            self._real = self._outputs(self.real.images)
        return self._real

    @torch.no_grad()
    def _outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, d) and logits (N, classes), float32 on the device."""
        with torch.autocast(self.device.type, enabled=False):
            outputs = [self.network(batch.to(self.device)) for batch in images.split(BATCH)]
        features, logits = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        return features, logits


class _Given(nn.Module):
    """The network that torchmetrics asks for: its input is features or logits already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x


@full_precision
def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """‖μ − μ'‖² + tr(Σ + Σ' − 2 (Σ Σ')^½) of two sets of features (N, d) (Heusel et al. 2017, eq. 6), in float64."""
    metric = FrechetInceptionDistance(_Given(real.shape[1]), sync_on_compute=False).to(real.device)
    for features, is_real in ((real, True), (fake, False)):
        for batch in features.split(BATCH):
            metric.update(batch, real=is_real)
    return float(metric.compute())


@full_precision
def inception_score(logits: Tensor) -> float:
    """exp(E KL(p(y|x) ‖ p(y))) of logits (N, classes), the mean over ten splits (Salimans et al. 2016).

    Fewer splits where they would have less than 500 images, since small splits score too low.
    """
    with _known_warnings(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # torchmetrics shuffles before it splits
        splits = max(1, min(10, len(logits) // 500))
        metric = InceptionScore(_Given(logits.shape[1]), splits=splits, sync_on_compute=False)
        metric.to(logits.device).update(logits)
        return float(metric.compute()[0])


@full_precision
def kid(real: Tensor, fake: Tensor) -> float:
    """The unbiased estimate of MMD² with the kernel (x·y/d + 1)³, of all pairs (Bińkowski et al. 2018, §4).

    Unlike FID it has no bias that grows as samples become few. May be negative.
    """
    within = (_kernel_sum(x, x) - _diagonal_sum(x) for x in (real, fake))
    real_real, fake_fake = (
        total / (len(x) * (len(x) - 1)) for total, x in zip(within, (real, fake), strict=True)
    )
    return float(real_real + fake_fake - 2 * _kernel_sum(real, fake) / (len(real) * len(fake)))


def _kernel_sum(a: Tensor, b: Tensor) -> Tensor:
    total, b = torch.zeros((), dtype=torch.float64, device=a.device), b.double()
    for block in a.split(BLOCK):
        total += (block.double() @ b.T / a.shape[1] + 1).pow(3).sum()
    return total


def _diagonal_sum(a: Tensor) -> Tensor:
    return (a.double().square().sum(1) / a.shape[1] + 1).pow(3).sum()


@contextmanager
def _known_warnings() -> Iterator[None]:
    """torchmetrics warns that it keeps all features, and that one split has no standard deviation: both intended."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `InceptionScore` will save")
        warnings.filterwarnings("ignore", r"std\(\): degrees of freedom")
        yield
