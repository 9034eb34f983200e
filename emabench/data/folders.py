"""Image folders (ImageNet's form: SPLIT/CLASS/*.JPEG), decoded in worker processes.

What a step sees is a function of (seed, step), whatever the number of workers and wherever training is resumed: the
worker draws each image's augmentation from a seed that comes with its index.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from emabench import seeding
from emabench.data.batches import Batches
from emabench.errors import UserError

if TYPE_CHECKING:  # imported where it is used: it takes longer to import than torch
    from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as in pytorch/examples
NOT_AN_IMAGE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def finish() -> list[Any]:
    """The last transforms of every view: a float tensor (3, H, W), normalised with ImageNet's mean and deviation."""
    from torchvision.transforms import v2

    return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]


def training_view(size: int) -> v2.Compose:
    """Random crop of 8 to 100 % of the area, and mirroring (pytorch/examples, imagenet)."""
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), *finish()])


def evaluation_view(size: int) -> v2.Compose:
    """The centre of the image at 256/224 of the size asked for."""
    from torchvision.transforms import v2

    return v2.Compose([v2.Resize(round(size * 256 / 224), antialias=True), v2.CenterCrop(size), *finish()])


class ImageFiles:
    """The images below `root`: a class for each subfolder that is not hidden, classes and files in sorted order.

    As torchvision's ImageFolder lists them, which counts `.ipynb_checkpoints` as a class.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        names = [entry.name for entry in os.scandir(root) if entry.is_dir()]
        self.classes = sorted(name for name in names if not name.startswith("."))
        if not self.classes:
            raise FileNotFoundError("no subfolders")
        self.class_to_idx = {name: number for number, name in enumerate(self.classes)}
        self.samples = [
            (path, number) for name, number in self.class_to_idx.items() for path in _images(root / name)
        ]
        if empty := set(range(len(self.classes))) - {number for _, number in self.samples}:
            raise FileNotFoundError(f"no images in {', '.join(self.classes[n] for n in sorted(empty)[:3])}")


def _images(folder: Path) -> Iterator[str]:
    for place, _, names in sorted(os.walk(folder, followlinks=True)):
        for name in sorted(names):
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                yield os.path.join(place, name)  # noqa: PTH118 - a Path for each of a million files takes seconds


def _as_rgb(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB. Deeper grey values are scaled: Pillow would clip them at 255."""
    if not image.mode.startswith(("I", "F")):
        return image.convert("RGB")
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError("its floating-point values are not within 0 and 1")
        white = 1.0
    else:  # I;16, or I: 32 bits that may hold 16
        if values.min() < 0:
            raise ValueError("it has negative grey values")
        white = 2.0**16 - 1 if values.max() < 2**16 else 2.0**31 - 1
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8)).convert("RGB")


class Folder(Dataset[tuple[Tensor, int] | str]):
    """The images below a folder with a subfolder for each class. Raises UserError where there are none."""

    def __init__(self, path: Path, view: v2.Compose) -> None:
        try:
            self.files = ImageFiles(path)
        except OSError as error:
            raise UserError(
                f"task.data: {path} is no folder of images ({error}); it should hold one subfolder a class"
            ) from error
        self.view = view

    def __len__(self) -> int:
        return len(self.files.samples)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int] | str:
        """An image and its class, or what is wrong with the file: a worker's exception would lose its message."""
        index, seed = item
        path, label = self.files.samples[index]
        try:
            with Image.open(path) as file:
                image = _as_rgb(file)
        except NOT_AN_IMAGE as error:
            return f"{path} is not an image ({error}); remove or replace it"
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.view(image), label


class TrainingStream:
    """Batches of a folder by step. The next step continues the stream; any other step restarts it at that step.

    Of each batch the images of one process among `world_size` are decoded, `size` / `world_size` of them.
    """

    def __init__(
        self, folder: Folder, size: int, seed: int, workers: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.folder, self.seed, self.workers = folder, seed, workers
        self.batches = Batches(len(folder), size, seed)
        self.part = slice(rank * size // world_size, (rank + 1) * size // world_size)
        self._iterator: Iterator[Any] = iter(())
        self._next = -1

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This process's images (size / world_size, 3, H, W) normalised, labels, on the CPU (pinned where there is a GPU)."""
        if step != self._next:
            self._iterator = iter(
                _loader(self.folder, _plan(self.batches, self.seed, step, self.part), self.workers)
            )
        self._next = step + 1
        return _checked(next(self._iterator))


def _plan(batches: Batches, seed: int, step: int, part: slice) -> Iterator[list[tuple[int, int]]]:
    """(image, seed of its view) of each batch from `step` on.

    Not a method: the stream and its iterator would reference each other, and workers would live until garbage collection.
    """
    while True:
        chosen = batches.indices(step).tolist()
        yield [(i, seeding.derive(seed, "view", step * 2**20 + n)) for n, i in enumerate(chosen)][part]
        step += 1


def in_order(folder: Folder, size: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, `size` at a time."""
    items = [(i, 0) for i in range(len(folder))]
    parts = [items[at : at + size] for at in range(0, len(items), size)]
    yield from map(_checked, _loader(folder, iter(parts), workers))


def _loader(folder: Folder, batches: Iterator[list[tuple[int, int]]], workers: int) -> Any:
    if workers:  # an iterator in a reference cycle ends its workers when it is collected; at exit Python waits for them
        atexit.unregister(gc.collect)
        atexit.register(gc.collect)
    return DataLoader(
        folder,
        batch_sampler=_Plan(batches),
        num_workers=workers,
        collate_fn=_collated,
        # Otherwise it draws from torch's default generator, and a resumed step would see different dropout.
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_ignore_signals,
    )


def _ignore_signals(worker: int) -> None:
    """A signal reaches all processes of a job; those that read data must outlive the step in progress."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


class _Plan:
    """A DataLoader asks its batch sampler for an iterator; the plan is one already."""

    def __init__(self, batches: Iterator[list[tuple[int, int]]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.batches


def _collated(items: list[tuple[Tensor, int] | str]) -> Any:
    """A batch, or what is wrong with the first of its files that cannot be read."""
    return next((item for item in items if isinstance(item, str)), None) or default_collate(items)


def _checked(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, str):
        raise UserError(f"task.data: {batch}")
    images, labels = batch
    return images, labels
