"""FID and inception score against their definitions in float64, and the features that they are measured in."""

from __future__ import annotations

import hashlib
import pickle
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import FrechetInceptionDistance

from emabench.data.images import Images
from emabench.errors import UserError
from emabench.metrics import features
from emabench.metrics.image_quality import ImageQuality, frechet_distance, kid
from emabench.metrics.inception import Inception

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def quick_training() -> Iterator[None]:
    """150 steps separate these images."""
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
    a, b = (quality.network(images)[0].double().numpy() for images in (real.images, fake))
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(one @ two).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + two - 2 * root)
    assert quality.measure(fake)["fid"] == pytest.approx(expected, rel=1e-4)
    assert quality.measure(real.images)["fid"] == pytest.approx(0, abs=1e-3)


def test_a_fid_below_zero_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrechetInceptionDistance, "compute", lambda self: torch.tensor(-0.25))
    assert frechet_distance(torch.randn(9, 4), torch.randn(9, 4)) == -0.25


def test_kid_is_the_unbiased_estimate() -> None:
    """By its definition, a loop over pairs; its mean over samples of one distribution is 0, at any size."""
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(7, 5, generator=draw), torch.randn(4, 5, generator=draw) + 0.5

    def kernel(x: Tensor, y: Tensor) -> float:
        return (float(x.double() @ y.double()) / 5 + 1) ** 3

    def within(x: Tensor) -> float:
        return (
            sum(kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j)
            / len(x)
            / (len(x) - 1)
        )

    between = sum(kernel(x, y) for x in a for y in b) / len(a) / len(b)
    assert kid(a, b) == pytest.approx(within(a) + within(b) - 2 * between, rel=1e-9)
    values = [kid(*torch.randn(2, 20, 3, generator=draw)) for _ in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20
    assert min(values) < 0


def test_inception_score_is_the_exponential_of_the_mutual_information(
    quality: ImageQuality, real: Images
) -> None:
    fake = noisy(real.images[:450])
    p = quality.network(fake)[1].double().softmax(1).numpy()
    expected = np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())
    assert quality.measure(fake)["is"] == pytest.approx(expected, rel=1e-4)
    assert 1 <= expected <= real.classes
    # No classifier of three classes can score more than 3, and these images are distinguished nearly always.
    assert 2.5 < quality.references()["is_real"] <= 3
    one_image = real.images[:1].expand(100, -1, -1, -1)
    assert quality.measure(one_image)["is"] == pytest.approx(1, abs=1e-5)


def test_measuring_is_repeatable_and_draws_nothing_from_the_run(quality: ImageQuality, real: Images) -> None:
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    first = quality.measure(noisy(real.images))
    assert torch.equal(torch.rand(2), expected)
    assert quality.measure(noisy(real.images)) == first


def test_the_floor_lies_between_nothing_and_noise(quality: ImageQuality, real: Images) -> None:
    references, other = quality.references(), quality.measure(255 - real.images)
    assert 0 < references["fid_real_halves"] < other["fid"]
    assert abs(references["kid_real_halves"]) < other["kid"]
    assert quality.measure(255 - real.images) == other  # the references leave the statistics as they are


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


# -- Inception-v3 -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the format of the published one, with weights drawn here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        patched.setattr("torch.load", lambda *_, **__: None)
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception", ["2048"], "none")
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


def tensorflow1_resize(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear, (H, W, C) → (size, size, C): output i reads input i · H / size, without half-pixel centres."""
    height, width = image.shape[:2]
    y, x = np.arange(size) * height / size, np.arange(size) * width / size
    top, left = y.astype(int), x.astype(int)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    dy, dx = (y - top)[:, None, None], (x - left)[None, :, None]
    above = image[top][:, left] * (1 - dx) + image[top][:, right] * dx
    below = image[bottom][:, left] * (1 - dx) + image[bottom][:, right] * dx
    return above * (1 - dy) + below * dy


def test_inception_sees_what_published_numbers_were_measured_on(inception_file: Path) -> None:
    """TensorFlow 1's resize and scale written here, then the layers of the file one after the other."""
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1)).byte()
    inception = Inception(str(inception_file))
    features, logits = inception(images)
    resized = np.stack([tensorflow1_resize(x.permute(1, 2, 0).double().numpy(), 299) for x in images])
    x = ((torch.from_numpy(resized).permute(0, 3, 1, 2) - 128) / 128).float()
    layers = dict(inception.network.named_children())
    for name in (name for name in layers if name not in ("fc", "AvgPool")):
        x = layers[name](x)
    expected = x.mean((2, 3))
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(logits, expected @ layers["fc"].weight.T, rtol=1e-3, atol=1e-4)
    halved = torch.nn.functional.interpolate(images.float(), (299, 299), mode="bilinear", antialias=True)
    assert not torch.allclose(
        halved, torch.from_numpy(resized).permute(0, 3, 1, 2).float(), atol=5
    )  # not that one


def test_the_label_tells_other_weights_from_the_published_ones(
    inception_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(inception_file.read_bytes()).hexdigest()[:8]
    assert Inception(str(inception_file)).label == f"Inception-v3, weights {digest}, TensorFlow 1's resize"
    monkeypatch.setattr("emabench.metrics.inception.PUBLISHED", digest)
    assert "weights of 2015-12-05" in Inception(str(inception_file)).label


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_in_place_of_inceptions_weights_runs_no_code(tmp_path: Path, archive: bool) -> None:
    hostile = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    if archive:
        torch.save({"fc.weight": Hostile(tmp_path / "pwned")}, hostile)
    else:
        hostile.write_bytes(pickle.dumps(Hostile(tmp_path / "pwned")))
    with pytest.raises(UserError, match=r"task\.inception_weights=.*does not hold Inception-v3's weights"):
        Inception(str(hostile))
    assert not (tmp_path / "pwned").exists()


def test_inceptions_weights_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, empty = tmp_path / "broken.pth", tmp_path / "empty.pth"
    broken.write_bytes(b"<html>404</html>")
    torch.save({}, empty)

    def no_network(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"task\.inception_weights=.*missing\.pth: there is no such file"):
        Inception(str(tmp_path / "missing.pth"))
    for given in (str(broken), str(empty), None):
        with pytest.raises(
            UserError, match=r"get weights-inception-.*task\.inception_weights=/path"
        ) as caught:
            Inception(given)
        assert f"task.inception_weights={given or 'null'}" in str(caught.value)
