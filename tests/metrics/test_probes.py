"""Probes against scikit-learn's own, and on features where the answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, label_binarize
from torch import Tensor

from emabench.metrics import probes

CLASSES = 4


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four overlapping clouds in 12 dimensions, of unlike scales: train, test and their classes."""
    draw = torch.Generator().manual_seed(0)
    centres = 1.5 * torch.randn(CLASSES, 12, generator=draw)
    y = torch.randint(CLASSES, (500,), generator=draw)
    scales = torch.logspace(-2, 1, 12)
    x = (centres[y] + torch.randn(500, 12, generator=draw)) * scales + 3
    return x[:300], x[300:], y[:300], y[300:]


def test_standardised_is_scikit_learns(data: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    train, test, _, _ = data
    scaler = StandardScaler().fit(train.numpy())
    for found, x in zip(probes.standardised(train, test), (train, test), strict=True):
        np.testing.assert_allclose(found.numpy(), scaler.transform(x.numpy()), atol=1e-4)


def test_a_feature_that_never_varies_says_nothing() -> None:
    train, test = probes.standardised(torch.tensor([[1.0, 2.0], [1.0, 4.0]]), torch.tensor([[9.0, 3.0]]))
    assert train.tolist() == [[0, -1], [0, 1]]
    assert test.tolist() == [[0, 0]]


@pytest.mark.parametrize("penalty", [0.1, 100.0])
def test_ridge_is_scikit_learns(data: tuple[Tensor, Tensor, Tensor, Tensor], penalty: float) -> None:
    train, test, y, _ = data
    scores = probes.ridge(train, test, y, CLASSES, penalty)
    model = Ridge(alpha=penalty).fit(
        train.double().numpy(), label_binarize(y.numpy(), classes=range(CLASSES))
    )
    np.testing.assert_allclose(scores.numpy(), model.predict(test.double().numpy()), atol=1e-6)


@pytest.mark.parametrize("penalty", [1e-4, 1e-2])
def test_logistic_is_scikit_learns(data: tuple[Tensor, Tensor, Tensor, Tensor], penalty: float) -> None:
    train, test = probes.standardised(*data[:2])
    y = data[2]
    found = probes.logistic(train, test, y, CLASSES, penalty).softmax(1)
    # Its C weighs the sum over images against |W|²/2.
    model = LogisticRegression(C=1 / (penalty * len(y)), max_iter=5000, tol=1e-8)
    expected = model.fit(train.numpy(), y.numpy()).predict_proba(test.numpy())
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-3)


def test_logistic_works_where_gradients_are_off(data: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    train, test = probes.standardised(*data[:2])
    with torch.no_grad():
        found = probes.top1(probes.logistic(train, test, data[2], CLASSES, 1e-2), data[3])
    assert found > 90


def test_neighbours_vote_by_cosine(data: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    train, test, y, _ = data
    votes = probes.neighbours(train, test, y, CLASSES, k=7, temperature=0.1, at_once=64)
    nearest = NearestNeighbors(n_neighbors=7, metric="cosine").fit(train.numpy())
    distance, index = nearest.kneighbors(test.numpy())
    expected = np.zeros((len(test), CLASSES))
    for i in range(len(test)):
        for d, j in zip(distance[i], index[i], strict=True):
            expected[i, int(y[j])] += math.exp((1 - d) / 0.1)
    expected /= expected.sum(1, keepdims=True)
    found = votes / votes.sum(1, keepdim=True)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)


def test_more_neighbours_than_images_are_all_of_them() -> None:
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    votes = probes.neighbours(
        train, torch.tensor([[1.0, 0.1]]), torch.tensor([0, 1, 1]), 2, k=200, temperature=0.07
    )
    assert votes.argmax(1).tolist() == [0]


def test_top1_is_the_share_that_is_right() -> None:
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert probes.top1(scores, torch.tensor([1, 0, 0, 0])) == 75
