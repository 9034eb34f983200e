"""download a data set, or say how to get it"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from emabench.compose import configuration
from emabench.data import catalog
from emabench.errors import DONE, RunFailed, UserError, nearest

FETCHED = {
    "fashion_mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}  # torchvision's names


def main(words: Sequence[str]) -> int:
    """`emabench data NAME [data_dir=…]`: into data_dir, checksummed; an existing data set is kept."""
    if not words or words[0] not in catalog.DATASETS:
        given = (
            f"{words[0]!r} is no data set{nearest(words[0], catalog.DATASETS)}" if words else "name one of "
        )
        raise UserError(given if words else given + ", ".join(catalog.DATASETS))
    name, data_dir = words[0], Path(configuration(words[1:]).data_dir)
    existing = catalog.found(name, data_dir)
    if existing:
        print(f"{name}: {existing}")
        return DONE
    if name not in FETCHED:
        raise UserError(f"{name} cannot be downloaded by a program\n{catalog.DATASETS[name].how_to_get}")
    print(f"{name}: {_fetch(name, data_dir)}")
    return DONE


def _fetch(name: str, data_dir: Path) -> Path:
    """Downloaded and unpacked aside, then moved: a broken download leaves nothing that looks complete."""
    from torchvision import datasets

    aside = data_dir / f".download-{name}"
    try:
        aside.mkdir(parents=True, exist_ok=True)
        getattr(datasets, FETCHED[name])(aside, download=True)
    except Exception as error:
        raise RunFailed(
            f"{name}: the download failed ({error})\n{catalog.DATASETS[name].how_to_get}"
        ) from error
    for place in catalog.DATASETS[name].places:
        if (aside / place).is_dir():
            (data_dir / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(aside / place, data_dir / place)
            shutil.rmtree(aside)
            return data_dir / place
    raise RunFailed(f"{name}: the download holds none of {', '.join(catalog.DATASETS[name].places)}")
