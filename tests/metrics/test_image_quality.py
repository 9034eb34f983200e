"""FID and inception score against their definitions in float64, and the features that they are measured in."""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor

from emabench.data.images import Images
from emabench.errors import UserError
from emabench.metrics import features
from emabench.metrics.image_quality import ImageQuality

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def quick_training() -> Iterator[None]:
    """150 steps tell these images apart."""
    with pytest.MonkeyPatch.context() as patched:
        train = features._train
        patched.setattr(features, "_train", lambda *args, steps=150: train(*args, steps=steps))
        yield


@pytest.fixture(scope="module")
def real() -> Images:
    """600 grey images of 8×8 in three classes that differ by where they are bright."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 3
    pixels = torch.randint(0, 120, (600, 1, 8, 8), generator=draw)
    for kind in range(3):
        pixels[labels == kind, :, 2 * kind : 2 * kind + 3] += 100
    return Images(pixels.byte(), labels, 3)


@pytest.fixture(scope="module")
def quality(real: Images, tmp_path_factory: pytest.TempPathFactory) -> ImageQuality:
    return ImageQuality(real, CPU, tmp_path_factory.mktemp("cache"), None)


def noisy(images: Tensor) -> Tensor:
    noise = 30 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (images + noise).clamp(0, 255).byte()


def test_fid_is_the_frechet_distance(quality: ImageQuality, real: Images) -> None:
    """‖μ − μ'‖² + tr(Σ + Σ' − 2 (Σ Σ')^½), by scipy's matrix square root in float64."""
    fake = noisy(real.images[:450])
    a, b = (quality.fid.inception(images).double().numpy() for images in (real.images, fake))
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(one @ two).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + two - 2 * root)
    assert quality.measure(fake)["fid"] == pytest.approx(expected, rel=1e-4)
    assert quality.measure(real.images)["fid"] == pytest.approx(0, abs=1e-3)


def test_inception_score_is_the_exponential_of_the_mutual_information(
    quality: ImageQuality, real: Images
) -> None:
    fake = noisy(real.images[:450])
    p = quality.score.inception(fake).double().softmax(1).numpy()
    expected = np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())
    assert quality.measure(fake)["is"] == pytest.approx(expected, rel=1e-4)
    assert 1 <= expected <= real.classes
    # No classifier of three classes can score more than 3, and these images are told apart nearly always.
    assert 2.5 < quality.inception_score(real.images) <= 3
    one_image = real.images[:1].expand(100, -1, -1, -1)
    assert quality.inception_score(one_image) == pytest.approx(1, abs=1e-5)


def test_measuring_is_repeatable_and_draws_nothing_from_the_run(quality: ImageQuality, real: Images) -> None:
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    first = quality.measure(noisy(real.images))
    assert torch.equal(torch.rand(2), expected)
    assert quality.measure(noisy(real.images)) == first


def test_the_floor_lies_between_nothing_and_noise(quality: ImageQuality, real: Images) -> None:
    before = quality.measure(255 - real.images)["fid"]
    assert 0 < quality.floor() < before
    assert quality.measure(255 - real.images)["fid"] == before  # the floor leaves the statistics as they are


def weights(net: torch.nn.Module) -> list[Tensor]:
    return list(net.state_dict().values())


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


def test_the_feature_network_is_trained_once_and_anew_where_its_file_is_damaged(
    real: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, trained = features._train, []

    def counted(*args: Any) -> None:
        trained.append(args)
        train(*args, steps=20)

    monkeypatch.setattr(features, "_train", counted)

    def net() -> features.FeatureNet:
        return features.feature_net(real.images, real.labels, 3, tmp_path)

    first = net()
    assert len(trained) == 1
    assert same(net(), first)
    assert len(trained) == 1
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    whole = file.read_bytes()
    for damaged in (whole[:-1], b"", bytes([whole[0] ^ 1]) + whole[1:]):
        file.write_bytes(damaged)
        trained.clear()
        assert same(net(), first)
        assert len(trained) == 1
        assert file.read_bytes() == whole
    features.feature_net(real.images, real.labels.flip(0), 3, tmp_path)  # other data: another network
    assert len(trained) == 2


def test_the_feature_network_does_not_depend_on_threads_nor_on_the_runs_seed(
    real: Images, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    nets = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            torch.manual_seed(count)
            nets.append(features.feature_net(real.images, real.labels, 3, tmp_path / str(count)))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert same(*nets)


def test_inceptions_weights_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colour = Images(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.long), 10)
    missing, broken = tmp_path / "missing.pth", tmp_path / "broken.pth"
    broken.write_bytes(b"<html>404</html>")

    def no_network(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", no_network)
    with pytest.raises(UserError, match=r"task\.inception_weights=.*missing\.pth: there is no such file"):
        ImageQuality(colour, CPU, tmp_path, str(missing))
    for given in (str(broken), None):
        with pytest.raises(UserError, match=r"get weights-inception-.*task\.inception_weights=/path") as said:
            ImageQuality(colour, CPU, tmp_path, given)
        assert f"task.inception_weights={given}" in str(said.value)
