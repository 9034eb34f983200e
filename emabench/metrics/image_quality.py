"""FID and inception score of sampled images, through torchmetrics.

Colour images are measured in Inception-v3's features, as published numbers are; small grey ones in those of a
classifier of our own (`features.py`). What was used is part of the result and decides what may be compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from emabench import seeding
from emabench.data.images import Images
from emabench.errors import UserError
from emabench.metrics.features import Logits, feature_net

BATCH = 500  # images through the feature network at a time


class ImageQuality:
    """FID against a set of real images, and IS, of uint8 images (N, C, H, W)."""

    def __init__(self, real: Images, device: torch.device, cache: Path, inception: str | None) -> None:
        self.real, self.device = real, device
        if real.images.shape[1] == 3:
            self.features = "Inception-v3 (torch-fidelity)"
            self.fid, self.score = _with_inception(inception)
        else:
            net = feature_net(real.images, real.labels, real.classes, cache)
            self.features = f"64 features of a classifier trained on these {len(real)} images"
            self.fid = FrechetInceptionDistance(
                net, reset_real_features=False, input_img_size=self._size(), sync_on_compute=False
            )
            self.score = _inception_score(Logits(net))
        self.fid = self.fid.to(device)  # torchmetrics sums features in float64
        self.score = self.score.to(device)
        self._real_seen = False

    def measure(self, images: Tensor) -> dict[str, float]:
        """{"fid", "is"} of sampled images."""
        if not self._real_seen:
            for batch in self._batches(self.real.images):
                self.fid.update(batch, real=True)
            self._real_seen = True
        self.fid.reset()
        for batch in self._batches(images):
            self.fid.update(batch, real=False)
        return {"fid": max(0.0, float(self.fid.compute())), "is": self.inception_score(images)}

    def inception_score(self, images: Tensor) -> float:
        """exp(E KL(p(y|x) ‖ p(y))), the mean over ten splits (Salimans et al. 2016); fewer where they would be
        below 500 images, since small splits score too low."""
        self.score.reset()
        self.score.splits = max(1, min(10, len(images) // 500))
        for batch in self._batches(images):
            self.score.update(batch)
        with torch.random.fork_rng(devices=[]):  # torchmetrics shuffles before it splits
            torch.manual_seed(0)
            with _known_warnings():
                return float(self.score.compute()[0])

    def floor(self) -> float:
        """FID between two halves of the real images: what no sampler can be expected to beat."""
        order = torch.randperm(len(self.real), generator=seeding.generator(0, "halves"))
        half = len(order) // 2
        # A clone, not a new one: that would ask the network for its size with an image on the CPU.
        halves = self.fid.clone()
        halves.reset_real_features = True
        halves.reset()
        for part, real in ((order[:half], True), (order[half : 2 * half], False)):
            for batch in self._batches(self.real.images[part]):
                halves.update(batch, real=real)
        return max(0.0, float(halves.compute()))

    def _size(self) -> tuple[int, int, int]:
        channels, height, width = self.real.images.shape[1:]
        return channels, height, width

    def _batches(self, images: Tensor) -> Iterator[Tensor]:
        return (batch.to(self.device) for batch in images.split(BATCH))


def _inception_score(logits: torch.nn.Module) -> InceptionScore:
    with _known_warnings():
        return InceptionScore(logits, splits=10, sync_on_compute=False)


@contextmanager
def _known_warnings() -> Iterator[None]:
    """torchmetrics warns that all features are kept, and that one split has no standard deviation: both intended."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `InceptionScore` will save")
        warnings.filterwarnings("ignore", r"std\(\): degrees of freedom")
        yield


def _with_inception(weights: str | None) -> tuple[FrechetInceptionDistance, InceptionScore]:
    if weights and not Path(weights).is_file():
        raise UserError(f"task.inception_weights={weights}: there is no such file")
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        fid = FrechetInceptionDistance(
            2048,
            reset_real_features=False,
            feature_extractor_weights_path=weights,
            sync_on_compute=False,
        )
        logits = FeatureExtractorInceptionV3("inception", ["logits_unbiased"], weights)
        return fid, _inception_score(_First(logits))
    except Exception as error:
        raise UserError(
            f"task.inception_weights={weights}: Inception-v3's weights could be neither downloaded nor read "
            f"({type(error).__name__}); get weights-inception-2015-12-05-6726825d.pth from torch-fidelity's "
            "releases and set task.inception_weights=/path/to/it"
        ) from error


class _First(torch.nn.Module):
    """torch-fidelity's extractor gives a tuple of features; this takes the one asked for."""

    def __init__(self, extractor: torch.nn.Module) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, images: Tensor) -> Tensor:
        return self.extractor(images)[0]
