"""The data sets that tasks know: where each is looked for, and how to get it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Dataset:
    """A data set by name. `places` are tried in order, relative ones below `data_dir`."""

    places: tuple[str, ...]
    how_to_get: str
    embedded: bool = False  # comes with an installed package


DATASETS: dict[str, Dataset] = {
    "digits": Dataset((), "comes with scikit-learn", embedded=True),
    "fashion_mnist": Dataset(
        ("fashion-mnist", "FashionMNIST/raw", "/usr/share/datasets/fashion-mnist"),
        "Debian: apt install dataset-fashion-mnist; elsewhere it is downloaded on first use by name",
    ),
}


def found(name: str, data_dir: Path) -> str | None:
    """Where a data set lies on this machine, None where it does not. Raises KeyError for an unknown name."""
    dataset = DATASETS[name]
    if dataset.embedded:
        return "embedded"
    for place in dataset.places:
        if (data_dir / place).is_dir():
            return str(data_dir / place)
    return None
