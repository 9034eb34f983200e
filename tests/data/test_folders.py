"""Folders of images: decoded by whichever worker, a step's batch is the same; a file that is none is named."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emabench.data.folders import Folder, TrainingStream, evaluation_view, in_order, training_view
from emabench.errors import UserError


@pytest.fixture
def photographs(tmp_path: Path) -> Iterator[Path]:
    """Two classes of six JPEGs of different sizes, one of them grey."""
    drawn = np.random.default_rng(0)
    for number in range(12):
        kind = tmp_path / ("cat" if number % 2 else "dog")
        kind.mkdir(exist_ok=True)
        shape = (20 + number, 30, 3) if number else (25, 25)
        Image.fromarray(drawn.integers(0, 256, shape, np.uint8)).save(kind / f"{number}.JPEG")
    yield tmp_path


def stream(path: Path, workers: int, seed: int = 0) -> TrainingStream:
    return TrainingStream(Folder(path, training_view(16)), 4, seed, workers)


def test_a_step_sees_the_same_whatever_the_workers_and_wherever_it_is_begun_at(photographs: Path) -> None:
    in_turn = stream(photographs, workers=0)
    batches = [in_turn.batch(step) for step in range(7)]
    others = stream(photographs, workers=2)
    for step in (4, 5, 0, 6):
        images, labels = others.batch(step)
        assert torch.equal(images, batches[step][0])
        assert torch.equal(labels, batches[step][1])
    assert batches[0][0].shape == (4, 3, 16, 16)
    # The same files at another step, or under another seed, are cut and mirrored in another way.
    assert not torch.equal(stream(photographs, 0, seed=1).batch(0)[0], batches[0][0])
    views = {image.numpy().tobytes() for images, _ in batches for image in images}
    assert len(views) == 28


def test_workers_end_with_their_stream(photographs: Path) -> None:
    others = len(multiprocessing.active_children())
    begun = stream(photographs, workers=2)
    begun.batch(0)
    assert len(multiprocessing.active_children()) == others + 2
    begun.batch(5)  # another place in the training: the workers for the next step are of no more use
    assert len(multiprocessing.active_children()) == others + 2
    del begun
    assert len(multiprocessing.active_children()) == others


def test_decoding_leaves_the_runs_own_random_numbers_alone(photographs: Path) -> None:
    """Dropout after a batch must not depend on whether the stream was begun at this step."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    for workers in (0, 1):
        torch.manual_seed(5)
        stream(photographs, workers).batch(3)
        assert torch.equal(torch.rand(3), expected)


def test_evaluation_sees_the_centre_of_every_image_once(photographs: Path) -> None:
    folder = Folder(photographs, evaluation_view(14))
    images, labels = (torch.cat(part) for part in zip(*in_order(folder, 5, 0), strict=True))
    assert labels.tolist() == [0] * 6 + [1] * 6
    with Image.open(photographs / "cat/1.JPEG") as file:
        plain = file.convert("RGB").resize((30 * 16 // 21, 16), Image.Resampling.BILINEAR)
    left = round((plain.width - 14) / 2)
    centre = np.asarray(plain, np.float32)[1:15, left : left + 14] / 255
    expected = (centre - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    np.testing.assert_allclose(images[0].permute(1, 2, 0).numpy(), expected, atol=0.02)


CUT, EMPTY, PAGE = (lambda data: data[: len(data) // 2]), (lambda _: b""), (lambda _: b"<html>")


@pytest.mark.parametrize(("workers", "damage"), [(0, CUT), (0, EMPTY), (0, PAGE), (1, CUT)])
def test_a_file_that_is_no_image_is_named_in_one_line(
    photographs: Path, workers: int, damage: object
) -> None:
    bad = photographs / "dog/4.JPEG"
    bad.write_bytes(damage(bad.read_bytes()))  # type: ignore[operator]
    with pytest.raises(UserError, match=r"dog/4\.JPEG is not an image.*remove or replace it$") as message:
        for step in range(3):
            stream(photographs, workers).batch(step)
    assert "Traceback" not in str(message.value)
    with pytest.raises(UserError, match=r"dog/4\.JPEG"):
        list(in_order(Folder(photographs, evaluation_view(14)), 5, workers))


def test_folders_without_images_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            Folder(path, evaluation_view(14))
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match="cat"):
        Folder(tmp_path, evaluation_view(14))


def test_a_hidden_folder_is_no_class(photographs: Path) -> None:
    """Jupyter's checkpoints, macOS's and editors' own files: torchvision's ImageFolder makes a class of them."""
    plain = Folder(photographs, evaluation_view(16))
    hidden = photographs / ".ipynb_checkpoints"
    hidden.mkdir()
    (photographs / "cat" / "1.JPEG").rename(hidden / "1.JPEG")
    (photographs / "dog" / "._2.JPEG").write_bytes(b"no image")
    found = Folder(photographs, evaluation_view(16))
    assert found.files.classes == plain.files.classes == ["cat", "dog"]
    assert len(found) == len(plain) - 1


def test_files_are_listed_as_torchvision_lists_them(photographs: Path) -> None:
    from torchvision.datasets import ImageFolder

    (photographs / "cat" / "more").mkdir()
    (photographs / "cat" / "3.JPEG").rename(photographs / "cat" / "more" / "0.jpeg")
    (photographs / "dog" / "notes.txt").touch()
    found, theirs = Folder(photographs, evaluation_view(16)).files, ImageFolder(photographs)
    assert found.samples == theirs.samples
    assert found.class_to_idx == theirs.class_to_idx


@pytest.mark.parametrize(
    ("kind", "white", "ending"),
    [(np.uint16, 65535, "png"), (np.uint16, 65535, "tif"), (np.int32, 2**31 - 1, "tif"), (np.float32, 1.0, "tif")],
)  # fmt: skip
def test_deep_images_are_scaled_as_their_eight_bit_copies(
    kind: type, white: float, ending: str, tmp_path: Path
) -> None:
    grey = np.arange(256, dtype=np.float64).reshape(16, 16)
    for name, values in (("deep", grey / 255 * white), ("plain", grey)):
        folder = tmp_path / name / "class"
        folder.mkdir(parents=True)
        image = (
            values.round().astype(kind if name == "deep" else np.uint8) if kind is not np.float32 else values
        )
        image = image.astype(kind if name == "deep" else np.uint8)
        Image.fromarray(image).save(folder / f"0.{ending if name == 'deep' else 'png'}")
    deep, plain = (Folder(tmp_path / name, evaluation_view(14))[0, 0][0] for name in ("deep", "plain"))
    assert torch.equal(deep, plain)


def test_an_image_whose_range_is_unknown_is_named(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    Image.fromarray(np.full((8, 8), 3.5, np.float32)).save(tmp_path / "class" / "0.tif")
    assert "not within 0 and 1" in Folder(tmp_path, evaluation_view(8))[0, 0]
