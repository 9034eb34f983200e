"""Image files are read as they are published, and what is wrong with them is reported."""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emabench.data import images
from emabench.data.augment import crop_and_flip
from emabench.errors import UserError

DRAWN = np.random.default_rng(0)


def idx(values: np.ndarray) -> bytes:
    """The values in the format of MNIST's files."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """A data directory with Fashion-MNIST's four files, 30 and 20 images large."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for part, count in (("train", 30), ("t10k", 20)):
        pixels = DRAWN.integers(0, 256, (count, 28, 28), np.uint8)
        labels = DRAWN.integers(0, 10, count, np.uint8)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return tmp_path


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """A data directory with CIFAR-10's and CIFAR-100's python batches, ten images each."""

    def batch(**labels: list[int]) -> bytes:
        data = DRAWN.integers(0, 256, (10, 3072), np.uint8)
        written = pickle.dumps({"data": data, "filenames": ["x.png"] * 10, **labels}, protocol=2)
        return written.replace(b"numpy._core.", b"numpy.core.")  # as numpy 1 wrote the published files

    ten, hundred = tmp_path / "cifar-10-batches-py", tmp_path / "cifar-100-python"
    ten.mkdir()
    hundred.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (ten / name).write_bytes(batch(labels=list(range(10))))
    for name in ("train", "test"):
        (hundred / name).write_bytes(batch(fine_labels=[*range(90, 100)], coarse_labels=[0] * 10))
    return tmp_path


def test_digits_are_all_there_once() -> None:
    train, test = (images.load("digits", Path("nowhere"), train=part) for part in (True, False))
    together = torch.cat([train.images, test.images])
    assert together.shape == (1797, 1, 8, 8)
    assert int(together.max()) == 255
    assert len(together.flatten(1).unique(dim=0)) > 1790  # the two parts do not overlap
    assert set(test.labels.tolist()) == set(range(10))


def test_fashion_mnist_is_read_as_written(fashion: Path) -> None:
    found = images.load("fashion_mnist", fashion, train=True)
    raw = gzip.decompress((fashion / "fashion-mnist/train-images-idx3-ubyte.gz").read_bytes())
    assert found.images.shape == (30, 1, 28, 28)
    assert found.images.numpy().tobytes() == raw[16:]
    assert len(images.load("fashion_mnist", fashion, train=False)) == 20


def test_debians_fashion_mnist_where_it_is() -> None:
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("apt install dataset-fashion-mnist")
    test = images.load("fashion_mnist", Path("nowhere"), train=False)
    assert test.labels.bincount().tolist() == [1000] * 10


def test_cifar_is_read_channel_by_channel(cifar: Path) -> None:
    train = images.load("cifar10", cifar, train=True)
    first = pickle.loads((cifar / "cifar-10-batches-py/data_batch_1").read_bytes())["data"][0]
    assert train.images.shape == (50, 3, 32, 32)
    # cs.toronto.edu/~kriz/cifar.html: 1024 red values, row by row, then green, then blue.
    assert int(train.images[0, 1, 2, 3]) == first[1024 + 2 * 32 + 3]
    assert images.load("cifar100", cifar, train=False).labels.tolist() == list(range(90, 100))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def say_more(path: Path) -> None:
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[7] += 1
    path.write_bytes(gzip.compress(bytes(data)))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        say_more,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"<html>404</html>"),
        lambda path: path.write_bytes(gzip.compress(b"")),
        lambda path: path.write_bytes(gzip.compress(idx(np.zeros((3, 5), np.uint8)))),
        lambda path: path.write_bytes(gzip.compress(idx(np.zeros((0, 28, 28), np.uint8)))),
        lambda path: path.write_bytes(gzip.compress(idx(np.zeros((7, 28, 28), np.uint8)))),
    ],
    ids=["cut", "shape", "empty", "page", "nothing", "dimensions", "none", "count"],
)
def test_damaged_idx_files_are_named(fashion: Path, damage: Any) -> None:
    damage(fashion / "fashion-mnist/train-images-idx3-ubyte.gz")
    with pytest.raises(UserError) as message:
        images.load("fashion_mnist", fashion, train=True)
    assert "task.data=fashion_mnist" in str(message.value)
    assert str(fashion / "fashion-mnist") in str(message.value)
    assert "apt install dataset-fashion-mnist" in str(message.value)
    assert len(images.load("fashion_mnist", fashion, train=False)) == 20  # the other files are as they were


def test_a_missing_file_is_named(fashion: Path) -> None:
    (fashion / "fashion-mnist/train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte\.gz is missing"):
        images.load("fashion_mnist", fashion, train=True)


class Runs:
    """Unpickled carelessly, it runs a command."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    "written",
    [
        b"",
        b"<html>404</html>",
        pickle.dumps([1, 2], protocol=2),
        pickle.dumps({"labels": [0]}, protocol=2),
        pickle.dumps({"data": np.zeros((2, 3072), np.float32), "labels": [0, 1]}, protocol=2),
        pickle.dumps({"data": np.zeros((2, 3000), np.uint8), "labels": [0, 1]}, protocol=2),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}, protocol=2),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, protocol=2),
        pickle.dumps(Runs(), protocol=2),
    ],
    ids=["empty", "page", "list", "no data", "floats", "narrow", "label", "count", "command"],
)
def test_damaged_cifar_batches_are_named_and_run_nothing(
    cifar: Path, written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cifar)
    (cifar / "cifar-10-batches-py/test_batch").write_bytes(written)
    with pytest.raises(UserError, match=r"task\.data=cifar10.*cifar-10-batches-py"):
        images.load("cifar10", cifar, train=False)
    assert not Path("ran").exists()


def test_a_missing_data_set_says_where_it_was_looked_for_and_how_to_get_it(cifar: Path) -> None:
    shutil.rmtree(cifar / "cifar-10-batches-py")
    with pytest.raises(UserError) as message:
        images.load("cifar10", cifar, train=True)
    assert str(cifar / "cifar-10-batches-py") in str(message.value)
    assert "cifar-10-python.tar.gz" in str(message.value)


def test_resizing_averages_over_the_area() -> None:
    squares = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    squares[0, 0, :2, 2:] = torch.tensor([[10, 20], [30, 40]])
    small = images.resized(images.Images(squares, torch.zeros(1, dtype=torch.long), 10), 2)
    assert small.images.tolist() == [[[[0, 25], [0, 0]]]]


def test_crops_and_flips_are_those_of_the_image() -> None:
    """Every result is one of the 50 views that an image has; all of them occur; the same draws give the same."""
    image = torch.arange(1, 17.0).view(1, 1, 4, 4)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
    views = [padded[:, :, y : y + 4, x : x + 4] for y in range(5) for x in range(5)]
    known = {tuple(v.flatten().tolist()) for view in views for v in (view, view.flip(3))}
    many = image.expand(2000, 1, 4, 4)
    seen = crop_and_flip(many, 2, True, torch.Generator().manual_seed(0))
    assert {tuple(v.flatten().tolist()) for v in seen} == known
    assert torch.equal(seen, crop_and_flip(many, 2, True, torch.Generator().manual_seed(0)))
