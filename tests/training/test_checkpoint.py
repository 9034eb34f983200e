"""A checkpoint is either whole or passed over."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from emabench.training.checkpoint import load_latest, save


def test_the_latest_whole_one_is_loaded_and_old_ones_go(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, {"x": torch.tensor([step])}, keep=2)
    assert len(list(tmp_path.iterdir())) == 2
    step, state = load_latest(tmp_path, pytest.fail) or (0, {})
    assert step == 3
    assert state["x"].item() == 3


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1, {"x": torch.arange(100)}, keep=2)
    path = save(tmp_path, 2, {"x": torch.arange(100)}, keep=2)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes({"cut": data[: len(data) // 2], "flip": data, "empty": b""}[damage])
    said: list[str] = []
    step, _ = load_latest(tmp_path, said.append) or (0, {})
    assert step == 1
    assert len(said) == 1
    assert path.name in said[0]


def test_all_damaged_is_none(tmp_path: Path) -> None:
    save(tmp_path, 1, {}, keep=1).write_bytes(b"")
    assert load_latest(tmp_path, lambda _: None) is None


def test_a_hostile_file_runs_no_code(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "pwned",))

    with pytest.raises(pickle.UnpicklingError):
        save(tmp_path, 1, {"x": Hostile()}, keep=1)
        load_latest(tmp_path, lambda _: None)
    assert not (tmp_path / "pwned").exists()
