"""The data sets that tasks know: where each is looked for, and how to get it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emabench.errors import UserError, nearest


@dataclass(frozen=True)
class Dataset:
    """`places` are tried in order, relative ones below `data_dir`; `needs` is what must lie in such a place."""

    places: tuple[str, ...]
    needs: str
    how_to_get: str
    embedded: bool = False  # comes with an installed package


CIFAR = "https://www.cs.toronto.edu/~kriz"
DATASETS: dict[str, Dataset] = {
    "digits": Dataset((), "", "it comes with scikit-learn", embedded=True),
    "fashion_mnist": Dataset(
        ("fashion-mnist", "FashionMNIST/raw", "/usr/share/datasets/fashion-mnist"),
        "train-images-idx3-ubyte.gz",
        "apt install dataset-fashion-mnist (Debian), or emabench data fashion_mnist downloads it",
    ),
    "cifar10": Dataset(
        ("cifar-10-batches-py",),
        "data_batch_1",
        f"emabench data cifar10 downloads it; or unpack {CIFAR}/cifar-10-python.tar.gz in data_dir",
    ),
    "cifar100": Dataset(
        ("cifar-100-python",),
        "train",
        f"emabench data cifar100 downloads it; or unpack {CIFAR}/cifar-100-python.tar.gz in data_dir",
    ),
    "imagenet": Dataset(
        ("imagenet", "ImageNet", "ILSVRC2012"),
        "train",
        "image-net.org gives ILSVRC2012 to those registered; unpack it as data_dir/imagenet/{train,val}/CLASS/*.JPEG",
    ),
    "ptb": Dataset(
        ("ptb",),
        "ptb.train.txt",
        "the Penn Treebank as Mikolov prepared it, a text: put ptb.{train,valid,test}.txt, of data/ in "
        "https://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz, in data_dir/ptb",
    ),
}


def found(name: str, data_dir: Path) -> str | None:
    """The folder of a data set on this machine, None if it is not on it. Raises KeyError for an unknown name."""
    dataset = DATASETS[name]
    if dataset.embedded:
        return "comes with the installation"
    for place in dataset.places:
        if (data_dir / place / dataset.needs).exists():
            return str(data_dir / place)
    return None


def located(name: str, data_dir: Path) -> Path:
    """The folder of a data set that is not embedded. Raises UserError, which says how to get it, if it is missing."""
    if name not in DATASETS:
        raise UserError(f"task.data={name}: there is no such data set{nearest(name, DATASETS)}")
    place = found(name, data_dir)
    if place is None:
        looked = ", ".join(str(data_dir / place) for place in DATASETS[name].places)
        raise UserError(f"task.data={name}: not found in {looked}\n{DATASETS[name].how_to_get}")
    return Path(place)
