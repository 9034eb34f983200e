"""A plain training loop with three averages: update, evaluate with each, save, resume.

    .venv/bin/python examples/train_loop.py

Handwritten digits that come with scikit-learn, a small network, a few seconds on one core.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from emabench.averaging import EMA, Averager, Mean

STEPS = 600


def main() -> dict[str, float]:
    """Train, resume once from a checkpoint half way, and return the test loss of every set of weights."""
    (x, y), test = digits()
    model, optimizer, averager = made()
    draw = torch.Generator().manual_seed(0)
    checkpoint = Path(tempfile.mkdtemp()) / "checkpoint.pt"
    for step in range(1, STEPS + 1):
        batch = torch.randint(len(x), (32,), generator=draw)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        averager.update()
        if step == STEPS // 2:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "averages": averager.state_dict(),
            }
            torch.save(state, checkpoint)
            model, optimizer, averager = made()  # as a new process would
            saved = torch.load(checkpoint, weights_only=True)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            averager.load_state_dict(saved["averages"])

    losses = {}
    for name in ("raw", *averager.names):
        with averager.applied(name):
            losses[name] = test_loss(model, *test)
        print(f"{name:>5}  test loss {losses[name]:.4f}")
    torch.save(averager.export("ema"), checkpoint.with_name("averaged.pt"))  # for model.load_state_dict
    return losses


def made() -> tuple[nn.Module, torch.optim.Optimizer, Averager]:
    """Model, optimiser and averages before the first step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    profiles = {
        "ema": EMA(decay=0.99, debias=True),
        "swa": Mean(start=STEPS // 2),
        "long": EMA(window=1000, debias=True),
    }
    return model, optimizer, Averager(model, profiles)


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """1200 images to train on and 597 to test with, as (images [N, 64] in [0, 1], labels [N])."""
    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1200], order[1200:]
    return (x[train], y[train]), (x[test], y[test])


@torch.no_grad()
def test_loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Mean cross-entropy in nats."""
    return float(nn.functional.cross_entropy(model(x), y))


if __name__ == "__main__":
    main()
