"""Small image data sets, held in memory: digits, Fashion-MNIST, CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import gzip
import importlib.util
import io
import pickle
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emabench.data import catalog
from emabench.errors import UserError

CLASSES = {"digits": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}
DIGITS_TEST = 597  # of 1797: the share that Mean Teacher-like small experiments hold out
# A pickle that is not what it should be can raise any of the last four.
DAMAGE = (
    *(OSError, EOFError, ValueError, zlib.error, struct.error, pickle.UnpicklingError),
    *(KeyError, TypeError, IndexError, AttributeError),
)


@dataclass(frozen=True)
class Images:
    """images: uint8, (N, channels, height, width); labels: int64, (N,)."""

    images: Tensor
    labels: Tensor
    classes: int

    def __len__(self) -> int:
        return len(self.images)


def load(name: str, data_dir: Path, train: bool) -> Images:
    """One split of a data set. Raises UserError, which says how to get it, if it is missing, empty or damaged."""
    if name == "digits":
        return _digits(train)
    place = catalog.located(name, data_dir)
    fix = catalog.DATASETS[name].how_to_get
    try:
        data = _fashion_mnist(place, train) if name == "fashion_mnist" else _cifar(name, place, train)
        classes = CLASSES[name]
        if not len(data.images):
            raise ValueError("no images in it")
        if len(data.images) != len(data.labels):
            raise ValueError(f"{len(data.images)} images and {len(data.labels)} labels")
        if not 0 <= int(data.labels.min()) <= int(data.labels.max()) < classes:
            raise ValueError(f"labels outside 0 … {classes - 1}")
    except FileNotFoundError as error:
        raise UserError(f"task.data={name}: {error.filename} is missing\n{fix}") from error
    except DAMAGE as error:
        raise UserError(f"task.data={name}: {place} is damaged ({error}); remove it\n{fix}") from error
    return data


def _digits(train: bool) -> Images:
    """1797 grey images of 8×8 (UCI's optical recognition of handwritten digits, from scikit-learn's own files).

    Each line of the file is 64 grey values from 0 to 16 and the digit. It is read without scikit-learn, whose import
    takes seconds.
    """
    (package,) = importlib.util.find_spec("sklearn").submodule_search_locations  # type: ignore[union-attr, misc]
    lines = np.loadtxt(Path(package) / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    grey, labels = lines[:, :-1].reshape(-1, 8, 8), lines[:, -1].astype(np.int64)
    # In the file's order neighbours are by one writer: split by a fixed permutation.
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = order[DIGITS_TEST:] if train else order[:DIGITS_TEST]
    images = np.rint(grey[chosen] * (255 / 16)).astype(np.uint8)
    return Images(torch.from_numpy(images)[:, None], torch.from_numpy(labels[chosen]), 10)


def _fashion_mnist(place: Path, train: bool) -> Images:
    part = "train" if train else "t10k"
    images = _idx(place / f"{part}-images-idx3-ubyte.gz", dimensions=3)
    labels = _idx(place / f"{part}-labels-idx1-ubyte.gz", dimensions=1)
    return Images(images[:, None], labels.long(), 10)


def _idx(path: Path, dimensions: int) -> Tensor:
    """A gzipped IDX file of bytes: two zeros, type 8, the number of dimensions, each size, the data."""
    with gzip.open(path) as file:
        data = file.read()
    zeros, kind, dims = struct.unpack_from(">HBB", data)
    if (zeros, kind, dims) != (0, 8, dimensions):
        raise ValueError(f"{path.name} is not an IDX file of bytes in {dimensions} dimensions")
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    if values.size != np.prod(shape, dtype=np.int64):
        raise ValueError(f"{path.name} holds {values.size} bytes for shape {shape}")
    return torch.from_numpy(values.reshape(shape).copy())


def _cifar(name: str, place: Path, train: bool) -> Images:
    """The python batches: dictionaries with `data`, (N, 3072) bytes, and `labels` or `fine_labels`."""
    if name == "cifar10":
        files = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
    else:
        files = ["train" if train else "test"]
    images, labels = [], []
    for file in files:
        batch = _Arrays(io.BytesIO((place / file).read_bytes()), encoding="latin1").load()
        data = np.ascontiguousarray(batch["data"])
        if data.dtype != np.uint8:
            raise ValueError(f"{file} holds {data.dtype}, not bytes")
        images.append(torch.from_numpy(data.reshape(-1, 3, 32, 32)))
        labels.append(torch.tensor(batch["labels" if name == "cifar10" else "fine_labels"]))
    return Images(torch.cat(images), torch.cat(labels).long(), CLASSES[name])


class _Arrays(pickle.Unpickler):
    """Unpickles numpy arrays and plain data, and nothing that could run code."""

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "scalar"})

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in self.ALLOWED:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):  # how newer pickles of numpy write bytes
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def resized(data: Images, size: int) -> Images:
    """The same images in size × size pixels (area interpolation, which averages over what it covers)."""
    if data.images.shape[-1] == size:
        return data
    scaled = torch.nn.functional.interpolate(data.images.float(), (size, size), mode="area")
    return Images(scaled.round().clamp(0, 255).byte(), data.labels, data.classes)
