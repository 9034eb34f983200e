"""Image classification: the article's §8.1 (ImageNet, ResNet-50) and its smaller relatives.

Averaging gains next to nothing with the learning rate annealed to zero, and a lot at a constant rate: run both
(`schedule.name=cosine`, `schedule.name=constant`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from emabench.config import Count, Fraction, Section
from emabench.data import catalog, folders, images
from emabench.data.augment import crop_and_flip
from emabench.data.batches import Batches
from emabench.tasks import base
from emabench.tasks.base import Direction

EVALUATION_BATCH = 500


class Options(Section):
    """The data, the network and what is done to the images."""

    name: Literal["classification"]
    data: Literal["digits", "fashion_mnist", "cifar10", "cifar100", "imagenet"]
    image_size: Annotated[int, Field(ge=8)]
    model: Literal["cnn", "resnet18", "resnet50"]
    width: Count  # channels of the first convolution of `cnn`
    pad: Annotated[int, Field(ge=0)]  # random crops of images padded by so many pixels (not imagenet)
    flip: bool  # random horizontal flips (imagenet always has them)
    label_noise: Fraction  # fraction of training labels replaced by a random class
    calibration_batches: Count  # from which batch-norm statistics of averaged weights are recomputed


def network(options: Options, channels: int, classes: int) -> nn.Module:
    """The classifier: images (N, channels, H, W) → logits (N, classes)."""
    if options.model != "cnn":  # torchvision takes longer to import than torch
        from torchvision.models import resnet18, resnet50

    if options.model == "resnet50":
        return resnet50(num_classes=classes)
    if options.model == "resnet18":
        net = resnet18(num_classes=classes)
        # CIFAR's form: images of 32×32 keep their size in the stem (kuangliu/pytorch-cifar).
        net.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
        return net
    widths = [options.width, 2 * options.width, 4 * options.width]
    layers: list[nn.Module] = []
    for block, width in enumerate(widths):
        stride = 1 if block == 0 else 2
        layers += [
            nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def top_k(logits: Tensor, labels: Tensor, k: int) -> float:
    """How often the right class is among the k largest logits (N, classes), in per cent."""
    hits = (logits.topk(k, dim=1).indices == labels[:, None]).sum()
    return 100 * float(hits / len(labels))


class Task(base.Task):
    """A classifier, measured by top-1 and top-5 accuracy in percent and by the negative log-likelihood in nats."""

    metrics: ClassVar[Mapping[str, Direction]] = {
        "top1": Direction.HIGHER,
        "top5": Direction.HIGHER,
        "nll": Direction.LOWER,
    }

    def __init__(self, options: Options, context: base.Context) -> None:
        self.options, self.context = options, context
        self.data = _Folders(options, context) if options.data == "imagenet" else _InMemory(options, context)
        self.model = network(options, self.data.channels, self.data.classes).to(context.device)
        if self.data.classes < 5:
            self.metrics = {  # type: ignore[misc] # of this data alone
                name: better for name, better in self.metrics.items() if name != "top5"
            }
            context.progress(f"task.data={options.data}: {self.data.classes} classes, so no top-5 accuracy")
        self.trained = context.parallel(self.model)
        self.optimizer = context.optimizer(self.model.parameters())

    @property
    def measured_with(self) -> Mapping[str, str]:
        return dict.fromkeys(self.metrics, f"{self.options.data}, {self.data.test_size} test images")

    @property
    def units(self) -> Mapping[str, str]:
        return {name: "%" for name in self.metrics if name != "nll"} | {"nll": "nats"}

    def averaged(self) -> nn.Module:
        return self.model

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        return self.data.batch(step)

    def train_step(self, batch: tuple[Tensor, Tensor], step: int) -> Mapping[str, Tensor | float]:
        x, y = batch
        logits = self.trained(x)
        loss = F.cross_entropy(logits.float(), y)
        norm = self.optimizer.step(loss, step)
        return {"loss": loss} | ({} if norm is None else {"grad_norm": norm})

    def evaluate(self) -> Mapping[str, float]:
        outputs = []
        for x, y in self.data.test():
            outputs.append((self.model(x).float(), y))
        logits, labels = (torch.cat(part) for part in zip(*outputs, strict=True))
        top = {f"top{k}": top_k(logits, labels, k) for k in (1, 5)[: len(self.metrics) - 1]}
        return {**top, "nll": float(F.cross_entropy(logits, labels))}

    def calibration(self) -> Iterator[Tensor]:
        return (x for x, _ in self.data.first(self.options.calibration_batches))

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


class _InMemory:
    """A small data set, whole on the device."""

    def __init__(self, options: Options, context: base.Context) -> None:
        self.options, self.context = options, context
        train = images.resized(images.load(options.data, context.data_dir, train=True), options.image_size)
        test = images.resized(images.load(options.data, context.data_dir, train=False), options.image_size)
        self.channels, self.classes, self.test_size = train.images.shape[1], train.classes, len(test)
        pixels = train.images.float()
        self.mean, self.std = (f(pixels, dim=(0, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
        device = context.device
        self.train_x, self.test_x = self._normalize(train.images), self._normalize(test.images)
        self.train_y = _with_noise(train.labels, train.classes, options.label_noise, context).to(device)
        self.test_y = test.labels.to(device)
        self.batches = Batches(len(train), context.batch_size, context.seed)

    def _normalize(self, x: Tensor) -> Tensor:
        return ((x.float() - self.mean) / self.std).to(self.context.device)

    def full_batch(self, step: int) -> tuple[Tensor, Tensor]:
        indices = self.batches.indices(step).to(self.context.device)
        x = self.train_x[indices]
        if self.options.pad or self.options.flip:
            rng = self.context.generator("augment", step, self.context.device)
            x = crop_and_flip(x, self.options.pad, self.options.flip, rng)
        return x, self.train_y[indices]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This process's shard of the batch of a step."""
        x, y = self.full_batch(step)
        return self.context.shard(x), self.context.shard(y)

    def first(self, batches: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the first training steps."""
        return (self.full_batch(step) for step in range(batches))

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.test_x.split(EVALUATION_BATCH), self.test_y.split(EVALUATION_BATCH), strict=True)


class _Folders:
    """ImageNet, decoded in worker processes."""

    channels = 3

    def __init__(self, options: Options, context: base.Context) -> None:
        self.context = context
        if options.label_noise:
            raise base.option_error(
                "label_noise", options.label_noise, "is for data sets in memory; set it to 0"
            )
        root: Path = catalog.located(options.data, context.data_dir)
        self.train = folders.Folder(root / "train", folders.training_view(options.image_size))
        self.held_out = folders.Folder(root / "val", folders.evaluation_view(options.image_size))
        self.classes, self.test_size = len(self.train.files.classes), len(self.held_out)
        if self.held_out.files.classes != self.train.files.classes:
            raise base.option_error(
                "data", options.data, f"{root}/train and val do not have the same classes"
            )
        self.stream = self._stream(context.rank, context.world_size)

    def _stream(self, rank: int, world_size: int) -> folders.TrainingStream:
        c = self.context
        return folders.TrainingStream(self.train, c.batch_size, c.seed, c.workers, rank, world_size)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        return self.stream.batch(step)

    def first(self, batches: int) -> Iterator[tuple[Tensor, Tensor]]:
        stream = self._stream(0, 1)  # separate from the one that training reads
        return (stream.batch(step) for step in range(batches))

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        workers = self.context.workers
        return map(self.context.to_device, folders.in_order(self.held_out, EVALUATION_BATCH, workers))


def _with_noise(labels: Tensor, classes: int, fraction: float, context: base.Context) -> Tensor:
    """A fraction of the labels replaced by classes drawn at random (Zhang et al. 2017)."""
    if not fraction:
        return labels
    rng = context.generator("label noise")
    replaced = torch.rand(len(labels), generator=rng) < fraction
    return torch.where(replaced, torch.randint(classes, (len(labels),), generator=rng), labels)
