"""A small classifier whose features take Inception-v3's place where images are small and grey.

Trained once with fixed seeds on the training images and kept in the cache. Its name says what it was trained on:
distances in its features are comparable with one another and with nothing else.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from emabench import seeding
from emabench.data.batches import Batches

RECIPE = "conv16-32-64 features64 adamw1e-3 cosine 1500x64 v1"  # a change of it is another network


class FeatureNet(nn.Module):
    """images (N, C, H, W) uint8 → features (N, 64) and logits (N, classes)."""

    num_features = 64

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 64),
        )
        self.head = nn.Linear(64, classes)
        self.label = ""  # set by `feature_net`: what it was trained on

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(images.float() / 127.5 - 1)
        return features, self.head(F.relu(features))


def feature_net(images: Tensor, labels: Tensor, classes: int, cache: Path) -> FeatureNet:
    """The network for these training images (uint8), from the cache or trained now (some seconds)."""
    sums = hashlib.sha256(RECIPE.encode())
    for tensor in (images, labels):
        sums.update(tensor.contiguous().numpy().tobytes())
    path = cache / "features" / f"{sums.hexdigest()[:16]}.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = FeatureNet(images.shape[1], classes)
    if not _load(net, path):
        _train(net, images, labels)
        _save(net, path)
    net.label = f"64 features of a classifier trained on these {len(images)} images"
    return net.eval().requires_grad_(False)


def _train(net: FeatureNet, images: Tensor, labels: Tensor, steps: int = 1500, size: int = 64) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = Batches(len(images), size, seed=0)
    with torch.enable_grad(), _one_thread():
        for step in range(steps):
            indices = batches.indices(step)
            x = _shifted(images[indices], seeding.generator(0, "shift", step))
            optimizer.zero_grad()
            F.cross_entropy(net(x)[1], labels[indices]).backward()
            optimizer.step()
            schedule.step()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums come out the same whatever number of threads a run has been given."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """The batch moved by up to a pixel, so that features do not hang on exact positions."""
    down, right = (int(v) for v in torch.randint(-1, 2, (2,), generator=generator))
    return torch.roll(images, (down, right), (2, 3))


def _load(net: FeatureNet, path: Path) -> bool:
    """Load an intact file (32 bytes of checksum, then the weights). Returns False if there is none."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        return False
    net.load_state_dict(torch.load(io.BytesIO(data[32:]), weights_only=True))
    return True


def _save(net: FeatureNet, path: Path) -> None:
    """A cache that cannot be written costs the training again, and nothing else."""
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    data = buffer.getvalue()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{id(net)}.tmp")
        aside.write_bytes(hashlib.sha256(data).digest() + data)
        aside.replace(path)
    except OSError:
        return
