"""Top-1, top-5 and negative log-likelihood of a classifier, summed batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class Accuracy:
    """Adds up batches of logits; `compute` divides once, so batches may be of any size."""

    def __init__(self) -> None:
        self.sums: Tensor | float = 0.0
        self.count = 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """logits: (N, classes); labels: (N,), int64."""
        logits = logits.float()
        ranked = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        nll = F.cross_entropy(logits, labels, reduction="sum").double()
        self.sums = self.sums + torch.stack([ranked[:, 0].sum().double(), ranked.sum().double(), nll])
        self.count += len(labels)

    def compute(self) -> dict[str, float]:
        """{"top1", "top5"} in percent and {"nll"} in nats an example. ValueError before the first update."""
        if not isinstance(self.sums, Tensor):
            raise ValueError("nothing was measured")
        top1, top5, nll = (self.sums / self.count).tolist()
        return {"top1": 100 * top1, "top5": 100 * top5, "nll": nll}
