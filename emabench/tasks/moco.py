"""MoCo v1 (He et al. 2020, “Momentum contrast for unsupervised visual representation learning”).

The article's §16.2: the encoder of the keys is an average of the one that is trained, eq. (104), so that the keys
in the queue stay consistent. `ema.decay` is its decay (MoCo's m; 0: keys by the trained encoder itself).

"Without averaging" can mean three things, so there are three: decay 0, which is known to fail; a memory bank, where
the last representation of every image is kept and no second encoder is needed (Wu et al. 2018); and an encoder that
is not trained at all, above which everything has to be.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from emabench.averaging import EMA, TargetNetwork
from emabench.config import Count, Fraction, Momentum, NonNegative, Positive, Section
from emabench.data import catalog, folders, images
from emabench.data.batches import Batches
from emabench.errors import UserError
from emabench.metrics import probes
from emabench.metrics.precision import full_precision
from emabench.tasks import base
from emabench.tasks.base import Direction

EVALUATION_BATCH = 500
CALIBRATION_BATCHES = 100  # from which batch-norm statistics of averaged weights are recomputed


class Options(Section):
    """The data and its views, the encoder, the contrast, and how features are measured."""

    name: Literal["moco"]
    data: Literal["digits", "fashion_mnist", "cifar10", "cifar100", "imagenet"]
    classes: str | None  # imagenet: a file with the names of the classes to use, one a line; below data_dir
    image_size: Annotated[int, Field(ge=8)]
    model: Literal["mlp", "resnet50"]
    hidden: Annotated[list[Count], Field(min_length=1)]  # mlp: widths of its hidden layers
    projection: Count  # dimensions of the representation that is contrasted
    crop: Annotated[Fraction, Field(gt=0)]  # a view shows at least this share of the image,
    flip: bool  # is mirrored half of the time,
    jitter: Fraction  # changes brightness and contrast (imagenet: colours too) by up to so much,
    noise: NonNegative  # and has noise of this deviation on its standardised pixels (not imagenet)
    method: Literal["moco", "bank", "random"]  # keys of a target network, of a memory bank, no training
    queue: Count  # negatives per query
    temperature: Positive
    bank_momentum: Momentum  # bank: what an entry keeps of itself when its image is seen
    shuffle: Count  # keys are encoded in so many groups in random order (batch norm would give them away)
    probe: Literal["ridge", "logistic"]
    probe_penalty: Positive  # on squared weights
    probe_images: Count | None  # labelled images of the training set that probes learn from; null: all
    neighbours: Count
    neighbour_temperature: Positive


class Encoder(nn.Module):
    """Images (N, C, H, W) → representations of length 1 (N, projection); `features` is what probes see."""

    def __init__(self, options: Options, channels: int) -> None:
        super().__init__()
        if options.model == "resnet50":
            from torchvision.models import resnet50  # takes longer to import than torch

            self.trunk: nn.Module = resnet50()
            width = self.trunk.fc.in_features
            self.trunk.fc = nn.Identity()
        else:
            layers: list[nn.Module] = [nn.Flatten()]
            for n_in, n_out in pairwise([channels * options.image_size**2, *options.hidden]):
                layers += [nn.Linear(n_in, n_out), nn.ReLU()]
            self.trunk, width = nn.Sequential(*layers), options.hidden[-1]
        self.head = nn.Linear(width, options.projection)

    def features(self, x: Tensor) -> Tensor:
        """(N, width of the trunk)."""
        return self.trunk(x)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.head(self.trunk(x)).float(), dim=1)


@full_precision
def info_nce(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """InfoNCE: −log of the share that a query's own key has among its key and all negatives, mean over queries.

    queries, keys: (N, d), a key for each query; negatives: (K, d). All of length 1.
    """
    positive = (queries * keys).sum(1, keepdim=True)
    logits = torch.cat([positive, queries @ negatives.T], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


class Task(base.Task):
    """MoCo, measured on frozen features by a linear classifier and by nearest neighbours, top-1 in per cent."""

    metrics: ClassVar[Mapping[str, Direction]] = {
        "linear_probe": Direction.HIGHER,
        "knn": Direction.HIGHER,
    }

    @classmethod
    def check(cls, options: Options, batch_size: int) -> None:
        if options.queue < batch_size or options.queue % batch_size:
            fits = f"{max(1, round(options.queue / batch_size)) * batch_size} say"
            fix = f"must be a multiple of batch_size={batch_size}, by which the queue moves on; {fits}"
            raise base.option_error("queue", options.queue, fix)

    def __init__(self, options: Options, context: base.Context) -> None:
        self.options, self.context = options, context
        self.check(options, context.batch_size)
        self.data = _Folders(options, context) if options.data == "imagenet" else _InMemory(options, context)
        self.model = Encoder(options, self.data.channels).to(context.device)
        if context.decay is None:
            raise UserError("ema.active=false: task moco trains with a target network; leave it true")
        # Batch-norm statistics of the keys are the key encoder's own, as in MoCo's code.
        self.target = TargetNetwork(self.model, EMA(decay=context.decay), buffers="own", check_finite=False)
        # Batch statistics of the queries are each process's own, as in MoCo's code.
        self.trained = context.parallel(self.model, synchronise_batchnorm=False)
        self.optimizer = context.optimizer(self.model.parameters())
        entries = len(self.data) if options.method == "bank" else options.queue
        start = torch.randn(entries, options.projection, generator=context.generator("moco memory"))
        self.memory = F.normalize(start, dim=1).to(context.device)  # the queue, or the bank

    @property
    def measured_with(self) -> Mapping[str, str]:
        o = self.options
        data = o.data if o.classes is None else f"{o.data} ({Path(o.classes).stem})"
        labels = "all" if self.data.labelled == len(self.data) else str(self.data.labelled)
        protocol = f"{labels} labels, {self.data.test_size} test images of {data}"
        return {"linear_probe": f"{o.probe}, {protocol}", "knn": f"{o.neighbours} neighbours, {protocol}"}

    @property
    def units(self) -> Mapping[str, str]:
        return dict.fromkeys(self.metrics, "%")

    def averaged(self) -> nn.Module:
        return self.model

    # -- training -----------------------------------------------------------------------------------------------

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Which images make up the whole batch, and two views of this process's shard of them."""
        return self.data.batch(step)

    def train_step(self, batch: tuple[Tensor, Tensor, Tensor], step: int) -> Mapping[str, Tensor | float]:
        shard = self.context.shard
        indices, first, second = batch
        queries = self.trained(first)
        if self.options.method == "bank":
            keys, negatives = self.memory[indices], self._bank_negatives(step)
        else:
            keys, negatives = self._encode_keys(self.context.all_gather(second), step), self.memory
        loss = info_nce(queries, shard(keys), negatives, self.options.temperature)
        if self.options.method != "random":
            self.optimizer.step(loss, step)
            self.target.update()
        if self.options.method == "bank":
            updated = torch.lerp(queries.detach(), shard(keys), self.options.bank_momentum)
            self.memory[indices] = F.normalize(self.context.all_gather(updated), dim=1)
        else:  # over the oldest keys in the queue
            at = step * len(keys) % len(self.memory)
            self.memory[at : at + len(keys)] = keys
        return {"loss": loss.detach()}

    @torch.no_grad()
    def _encode_keys(self, x: Tensor, step: int) -> Tensor:
        """Representations of x by the key encoder, each group of a shuffled batch with its own batch statistics.

        x is the whole batch, of which each process encodes its groups: all have the same queue in the end.
        """
        order = torch.randperm(len(x), generator=self.context.generator("moco shuffle", step)).to(x.device)
        groups = x[self.context.shard(order)].chunk(max(1, self.options.shuffle // self.context.world_size))
        keys = self.context.all_gather(torch.cat([self.target(group) for group in groups]))
        return torch.empty_like(keys).index_copy_(0, order, keys)

    def _bank_negatives(self, step: int) -> Tensor:
        """Negatives out of the bank, the same for the whole batch where Wu et al. draw some for each image."""
        rng = self.context.generator("moco negatives", step)
        indices = torch.randint(len(self.memory), (self.options.queue,), generator=rng)
        return self.memory[indices.to(self.memory.device)]

    # -- measuring ----------------------------------------------------------------------------------------------

    def evaluate(self) -> Mapping[str, float]:
        o, classes = self.options, self.data.classes
        train, y = self._features(self.data.probe_images())
        test, test_y = self._features(self.data.test_images())
        votes = probes.neighbours(train, test, y, classes, o.neighbours, o.neighbour_temperature)
        probe = probes.ridge if o.probe == "ridge" else probes.logistic
        scores = probe(*probes.standardised(train, test), y, classes, o.probe_penalty)
        return {"linear_probe": probes.top1(scores, test_y), "knn": probes.top1(votes, test_y)}

    def _features(self, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        outputs = []
        for x, y in batches:
            outputs.append((self.model.features(x).float(), y))
        features, labels = (torch.cat(part) for part in zip(*outputs, strict=True))
        return features, labels

    def calibration(self) -> Iterator[Tensor]:
        return self.data.calibration(CALIBRATION_BATCHES)

    def references(self) -> Mapping[str, float]:
        """The loss of a guess: equal scores for the key and all negatives."""
        return {"loss_of_chance": math.log(1 + self.options.queue)}

    # -- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "memory": self.memory,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.memory.copy_(state["memory"])


def view(x: Tensor, options: Options, rng: torch.Generator) -> Tensor:
    """Every image cropped and scaled back to its size, mirrored, with other contrast and brightness, and noise.

    x: (N, C, H, W), standardised; `rng` is a generator on x's device. A crop's sides are in the ratio of 3:4 to 4:3.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(x), generator=rng, device=x.device)

    area = uniform(options.crop, 1.0)
    half = uniform(-0.5, 0.5) * (-area.log()).clamp(
        max=math.log(4 / 3)
    )  # of the logarithm of the sides' ratio
    width, height = area.sqrt() * half.exp(), area.sqrt() * (-half).exp()
    sides = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if options.flip else torch.ones_like(width)
    # Where in the image (-1 to 1) the view's own pixels lie: x' = ±width·x + left, y' = height·y + top.
    place = torch.zeros(len(x), 2, 3, device=x.device)
    place[:, 0, 0], place[:, 0, 2] = width * sides, uniform(-1, 1) * (1 - width)
    place[:, 1, 1], place[:, 1, 2] = height, uniform(-1, 1) * (1 - height)
    grid = F.affine_grid(place, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    if options.jitter:
        contrast, brightness = (uniform(-options.jitter, options.jitter)[:, None, None, None] for _ in "cb")
        x = x * (1 + contrast) + brightness
    if options.noise:
        x = x + options.noise * torch.randn(x.shape, generator=rng, device=x.device)
    return x


class _InMemory:
    """A small data set, whole on the device."""

    def __init__(self, options: Options, context: base.Context) -> None:
        self.options, self.context = options, context
        if options.classes is not None:
            raise base.option_error("classes", options.classes, "is for task.data=imagenet; leave it null")
        train = images.resized(images.load(options.data, context.data_dir, train=True), options.image_size)
        test = images.resized(images.load(options.data, context.data_dir, train=False), options.image_size)
        self.channels, self.classes, self.test_size = train.images.shape[1], train.classes, len(test)
        pixels = train.images.float()
        self.mean, self.std = (f(pixels, dim=(0, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
        self.train_x, self.test_x = self._normalize(train.images), self._normalize(test.images)
        self.train_y, self.test_y = train.labels.to(context.device), test.labels.to(context.device)
        self.labelled = min(options.probe_images or len(train), len(train))
        self.batches = Batches(len(train), context.batch_size, context.seed)

    def __len__(self) -> int:
        return len(self.train_x)

    def _normalize(self, x: Tensor) -> Tensor:
        return ((x.float() - self.mean) / self.std).to(self.context.device)

    def views(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Which images make up the batch of a step, and two views of them."""
        indices = self.batches.indices(step).to(self.context.device)
        rng = self.context.generator("moco views", step, self.context.device)
        first, second = view(self.train_x[indices].repeat(2, 1, 1, 1), self.options, rng).chunk(2)
        return indices, first, second

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the whole batch, and this process's shard of its two views."""
        indices, first, second = self.views(step)
        return indices, self.context.shard(first), self.context.shard(second)

    def calibration(self, batches: int) -> Iterator[Tensor]:
        return (self.views(step)[1] for step in range(batches))

    def probe_images(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self.train_x[: self.labelled], self.train_y[: self.labelled]
        return zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True)

    def test_images(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.test_x.split(EVALUATION_BATCH), self.test_y.split(EVALUATION_BATCH), strict=True)


class _TwoViews:
    """Two independent views of an image, stacked: (2, 3, size, size). The augmentation of CMC's train_moco_ins.py."""

    def __init__(self, options: Options) -> None:
        from torchvision.transforms import v2

        jitter = min(options.jitter, 0.5)  # torchvision's limit for hue
        self.view = v2.Compose(
            [
                v2.RandomResizedCrop(options.image_size, scale=(options.crop, 1.0), antialias=True),
                v2.RandomGrayscale(0.2),
                v2.ColorJitter(options.jitter, options.jitter, options.jitter, jitter),
                v2.RandomHorizontalFlip(0.5 if options.flip else 0.0),
                *folders.finish(),
            ]
        )

    def __call__(self, image: Any) -> Tensor:
        return torch.stack([self.view(image), self.view(image)])


class _Folders:
    """ImageNet or some of its classes, decoded in worker processes."""

    channels = 3

    def __init__(self, options: Options, context: base.Context) -> None:
        self.options, self.context = options, context
        root = catalog.located(options.data, context.data_dir)
        plain = folders.evaluation_view(options.image_size)
        self.train = folders.Folder(root / "train", _TwoViews(options))
        self.held_out = folders.Folder(root / "val", plain)
        if options.classes is not None:
            names = _class_list(options.classes, context.data_dir)
            _restrict(self.train, names, options.classes)
            _restrict(self.held_out, names, options.classes)
        self.classes = len(self.train.files.classes)
        if self.held_out.files.classes != self.train.files.classes:
            raise base.option_error(
                "data", options.data, f"{root}/train and val do not have the same classes"
            )
        self.labelled = min(options.probe_images or len(self.train), len(self.train))
        # The same files, seen plainly; some of them are taken evenly, as they lie in the order of their classes.
        self.probe_folder = copy.copy(self.train)
        self.probe_folder.view = plain
        self.probe_folder.files = copy.copy(self.train.files)
        samples = self.train.files.samples
        chosen = (n * len(samples) // self.labelled for n in range(self.labelled))
        self.probe_folder.files.samples = [samples[i] for i in chosen]
        self.test_size = len(self.held_out)
        self.stream = self._stream(context.rank, context.world_size)

    def __len__(self) -> int:
        return len(self.train)

    def _stream(self, rank: int, world_size: int) -> folders.TrainingStream:
        c = self.context
        return folders.TrainingStream(self.train, c.batch_size, c.seed, c.workers, rank, world_size)

    def calibration(self, batches: int) -> Iterator[Tensor]:
        stream = self._stream(0, 1)  # of its own: separate from the one that training reads
        return (stream.batch(step)[0][:, 0] for step in range(batches))

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        pairs, _ = self.stream.batch(step)
        return self.stream.batches.indices(step), pairs[:, 0], pairs[:, 1]

    def probe_images(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._in_order(self.probe_folder)

    def test_images(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._in_order(self.held_out)

    def _in_order(self, folder: folders.Folder) -> Iterator[tuple[Tensor, Tensor]]:
        return map(self.context.to_device, folders.in_order(folder, EVALUATION_BATCH, self.context.workers))


def _class_list(classes: str, data_dir: Path) -> list[str]:
    """The names in a class list. Raises UserError where there is none."""
    path = data_dir / classes
    try:
        if not path.is_file():  # nor a device that never ends
            raise FileNotFoundError(path)
        names = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"task.classes={classes}: {path} cannot be read ({type(error).__name__})\n"
            "ImageNet-100's list is imagenet100.txt of github.com/HobbitLong/CMC: names of class folders, one a line"
        ) from error
    if not names:
        raise base.option_error(
            "classes", classes, f"{path} is empty; it takes names of class folders, one a line"
        )
    return names


def _restrict(folder: folders.Folder, names: list[str], classes: str) -> None:
    """Keep the images of these classes, numbered in the order of the names."""
    files = folder.files
    missing = sorted(set(names) - set(files.classes))
    if missing:
        raise base.option_error(
            "classes", classes, f"{missing[0]} and {len(missing) - 1} more are not in {files.root}"
        )
    new = {files.class_to_idx[name]: number for number, name in enumerate(sorted(set(names)))}
    files.samples = [(path, new[label]) for path, label in files.samples if label in new]
    files.classes = sorted(set(names))
