"""A checkpoint is either whole or passed over."""

from __future__ import annotations

import errno
import hashlib
import pickle
import threading
from pathlib import Path

import pytest
import torch

from emabench.runs.files import NoRoom
from emabench.testing.suite import assert_same
from emabench.training.checkpoint import Writer, copy_to_cpu, load_latest, save


def test_the_latest_whole_one_is_loaded_and_old_ones_go(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, {"x": torch.tensor([step])}, keep=2)
    assert len(list(tmp_path.iterdir())) == 2
    step, state = load_latest(tmp_path, pytest.fail) or (0, {})
    assert step == 3
    assert state["x"].item() == 3


def test_damaged_ones_of_later_steps_push_no_good_one_out(tmp_path: Path) -> None:
    for step in (900, 1000):
        save(tmp_path, step, {}, keep=2).write_bytes(b"")
    for step in (100, 200, 300):
        save(tmp_path, step, {"x": torch.tensor([step])}, keep=2)
    assert [path.name[:13] for path in sorted(tmp_path.iterdir())] == ["step-00000200", "step-00000300"]


def test_one_that_cannot_be_read_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, {}, keep=2)
    bad = save(tmp_path, 2, {}, keep=2)
    read = Path.read_bytes

    def failing(self: Path) -> bytes:
        if self == bad:
            raise OSError(errno.EIO, "Input/output error")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", failing)
    message: list[str] = []
    assert (load_latest(tmp_path, message.append) or (0, {}))[0] == 1
    assert "Input/output error" in message[0]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1, {"x": torch.arange(100)}, keep=2)
    path = save(tmp_path, 2, {"x": torch.arange(100)}, keep=2)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes({"cut": data[: len(data) // 2], "flip": data, "empty": b""}[damage])
    message: list[str] = []
    step, _ = load_latest(tmp_path, message.append) or (0, {})
    assert step == 1
    assert len(message) == 1
    assert path.name in message[0]


def test_all_damaged_is_none(tmp_path: Path) -> None:
    save(tmp_path, 1, {}, keep=1).write_bytes(b"")
    assert load_latest(tmp_path, lambda _: None) is None


def test_a_hostile_file_runs_no_code_though_its_sum_is_right(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "pwned",))

    save(tmp_path, 1, {"x": torch.arange(3)}, keep=2)
    hostile = save(tmp_path, 2, {"x": Hostile()}, keep=2)
    data = hostile.read_bytes()
    assert hashlib.sha256(data).hexdigest()[:16] in hostile.name
    assert b"touch" in data or b"pwned" in data
    plain = pickle.dumps({"x": Hostile()}, protocol=2)  # a pickle as such, not torch's archive of one
    (tmp_path / f"step-00000003-{hashlib.sha256(plain).hexdigest()[:16]}.pt").write_bytes(plain)
    message: list[str] = []
    step, _ = load_latest(tmp_path, message.append) or (0, {})
    assert step == 1
    assert len(message) == 2
    assert not (tmp_path / "pwned").exists()


def test_writing_beside_the_training_keeps_what_was_handed_over(tmp_path: Path) -> None:
    """The state may change as soon as `save` returns; one is on its way at a time, after what it counts on."""
    writer, order = Writer(tmp_path, keep=3), []
    free = threading.Event()
    state = {"x": torch.zeros(1000)}

    def first(step: int) -> None:
        free.wait(10)
        order.append((step, sorted(path.name[5:13] for path in tmp_path.glob("step-*.pt"))))

    writer.save(1, state, lambda: first(1))
    state["x"] += 1
    assert order == []  # not waited for
    free.set()
    writer.save(2, state, lambda: first(2))
    state["x"] += 1
    writer.join()
    assert order == [(1, []), (2, ["00000001"])]
    step, loaded = load_latest(tmp_path, pytest.fail) or (0, {})
    assert step == 2
    assert torch.equal(loaded["x"], torch.ones(1000))


@pytest.mark.parametrize("then", ["save", "join"])
def test_what_goes_wrong_beside_the_training_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    writer = Writer(tmp_path, keep=3)
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", _full)
        writer.save(1, {}, lambda: None)
        with pytest.raises(NoRoom, match=str(tmp_path)):
            writer.join() if then == "join" else writer.save(2, {}, lambda: None)
    assert list(tmp_path.iterdir()) == []
    writer.save(3, {}, lambda: None)  # there is room again
    writer.join()
    assert len(list(tmp_path.iterdir())) == 1


def _full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_copy_is_out_of_the_trainings_reach_and_as_it_was(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    model.add_module("tied", model[0])
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "pair": ([1], torch.empty(0))}
    expected = save(tmp_path, 1, state, keep=9).read_bytes()
    held = copy_to_cpu(state, {})
    with torch.no_grad():
        for tensor in [*model.state_dict().values(), *optimizer.state_dict()["state"][0].values()]:
            tensor.fill_(7)
    state["pair"][0].append(2)
    assert len(save(tmp_path, 2, held, keep=9).read_bytes()) <= len(expected)  # what is tied stays tied
    before, after = (torch.load(path, weights_only=True) for path in sorted(tmp_path.iterdir()))
    assert_same(after, before)
    assert after["model"]._metadata == model.state_dict()._metadata
