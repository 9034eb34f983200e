"""What frozen features are worth: linear classifiers on them, and nearest neighbours among them. Nothing is drawn.

Throughout, train and test: (N, features); y: classes of the images in `train` as int64, (N,).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from emabench.metrics.precision import full_precision


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Each feature with the mean 0 and the deviation 1 that it has in `train`; one that never varies becomes 0."""
    mean, deviation = train.mean(0), train.std(0, correction=0)
    scale = torch.where(deviation > 0, deviation, torch.inf)
    return (train - mean) / scale, (test - mean) / scale


def top1(scores: Tensor, y: Tensor) -> float:
    """How often the largest of the scores (N, classes) is at the right class, in per cent."""
    return 100 * float((scores.argmax(1) == y).double().mean())


@full_precision
def ridge(train: Tensor, test: Tensor, y: Tensor, classes: int, penalty: float) -> Tensor:
    """Scores (N, classes) of least squares on one-hot classes with penalty · |W|², the intercept free."""
    x, targets = train.double(), F.one_hot(y, classes).double()
    mean_x, mean_y = x.mean(0), targets.mean(0)
    x, targets = x - mean_x, targets - mean_y
    gram = x.T @ x
    gram.diagonal().add_(penalty)
    weights = torch.linalg.solve(gram, x.T @ targets)
    return (test.double() - mean_x) @ weights + mean_y


@full_precision
@torch.enable_grad()
def logistic(
    train: Tensor, test: Tensor, y: Tensor, classes: int, penalty: float, steps: int = 500
) -> Tensor:
    """Scores (N, classes) of multinomial logistic regression: the mean cross-entropy + penalty/2 · |W|², by L-BFGS."""
    weight = torch.zeros(classes, train.shape[1], device=train.device, requires_grad=True)
    bias = torch.zeros(classes, device=train.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, tolerance_grad=1e-6, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(train, weight, bias), y) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(loss)
    return F.linear(test, weight, bias).detach()


@full_precision
def neighbours(
    train: Tensor, test: Tensor, y: Tensor, classes: int, k: int, temperature: float, at_once: int = 1000
) -> Tensor:
    """Scores (N, classes): the k training images of largest cosine vote with exp(cosine/temperature) (Wu et al. 2018)."""
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    scores = []
    for part in test.split(at_once):
        cosine, nearest = (part @ train.T).topk(min(k, len(train)), dim=1)
        votes = torch.zeros(len(part), classes, device=train.device)
        # From the largest, so that no exponential overflows: a factor for all votes of an image.
        weights = ((cosine - cosine[:, :1]) / temperature).exp()
        scores.append(votes.scatter_add_(1, y[nearest], weights))
    return torch.cat(scores)
