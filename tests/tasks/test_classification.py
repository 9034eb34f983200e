"""Classification: the published networks, metrics against scikit-learn's, steps that can be resumed, folders."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import log_loss, top_k_accuracy_score
from torch import Tensor

from emabench.averaging import recalibrate
from emabench.compose import configuration
from emabench.config import checked
from emabench.errors import UserError
from emabench.seeding import seed_default
from emabench.tasks.classification import Options, Task, network
from emabench.training.build import build_task
from emabench.training.progress import Progress

CPU = torch.device("cpu")


def make(*overrides: str) -> Task:
    config = configuration(["task=classification", "scale=smoke", *overrides])
    task = build_task(config, CPU, Progress("test", config.steps))
    assert isinstance(task, Task)
    return task


def train(task: Task, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        seed_default(0, "step", step, CPU)
        losses.append(float(torch.as_tensor(task.train_step(task.batch(step), step)["loss"]).detach()))
    return losses


@torch.no_grad()
def evaluated(task: Task) -> dict[str, float]:
    task.averaged().eval()
    found = dict(task.evaluate())
    task.averaged().train()
    return found


def same(a: Task, b: Task) -> bool:
    one, two = a.averaged().state_dict(), b.averaged().state_dict()
    return all(torch.equal(one[name], two[name]) for name in one)


def photographs(data_dir: Path) -> Path:
    """A small ImageNet: six classes, four images each to train on and two to test."""
    drawn = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for kind in range(6):
            folder = data_dir / "imagenet" / part / f"n0{kind}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = drawn.integers(0, 256, (40, 50, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.JPEG")
    return data_dir


def test_the_published_networks() -> None:
    """torchvision's ResNet-50 has 25.557 million parameters; CIFAR's ResNet-18 keeps 32×32 in its stem."""
    config = configuration(["task=classification", "scale=paper"])
    options = checked(Options, config.task, at="task")
    assert sum(p.numel() for p in network(options, 3, 1000).parameters()) == 25_557_032
    assert (config.batch_size, config.optimizer.lr, config.optimizer.momentum) == (256, 0.1, 0.9)
    assert (config.optimizer.weight_decay, config.optimizer.nesterov) == (1e-4, False)
    assert config.steps == pytest.approx(90 * 1_281_167 / 256, rel=1e-3)
    assert (config.schedule.name, config.schedule.factor) == ("step", 0.1)
    assert config.schedule.milestones == pytest.approx([1 / 3, 2 / 3])

    small = network(options.model_copy(update={"model": "resnet18"}), 3, 10)
    assert sum(p.numel() for p in small.parameters()) == 11_173_962
    seen: list[torch.Size] = []
    small.layer1.register_forward_hook(lambda *given: seen.append(given[2].shape))  # type: ignore[union-attr,operator]
    small.eval()(torch.zeros(1, 3, 32, 32))
    assert seen == [torch.Size([1, 64, 32, 32])]


def test_metrics_are_scikit_learns() -> None:
    task = make()
    train(task, 0, 10)
    found = evaluated(task)
    with torch.no_grad():
        p = task.averaged().eval()(task.data.test_x).double().softmax(1).numpy()
    labels = task.data.test_y.numpy()
    assert found["top1"] == pytest.approx(100 * top_k_accuracy_score(labels, p, k=1))
    assert found["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, p, k=5))
    assert found["nll"] == pytest.approx(log_loss(labels, p), rel=1e-5)
    assert len(labels) == 597


def test_it_learns() -> None:
    task = make("task.width=8", "batch_size=32")
    losses = train(task, 0, 120)
    assert sum(losses[-20:]) < 0.2 * sum(losses[:20])
    assert evaluated(task)["top1"] > 85


def test_a_step_depends_on_state_seed_and_step_alone() -> None:
    overrides = ["task.pad=1", "task.flip=true", "task.label_noise=0.2"]
    task = make(*overrides)
    train(task, 0, 5)
    torch.save(task.state_dict(), buffer := io.BytesIO())
    evaluated(task)  # measuring, and looking at images for batch norm, leave training as it was
    list(task.calibration())
    losses = train(task, 5, 9)
    fresh = make(*overrides)
    fresh.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    assert train(fresh, 5, 9) == losses
    assert same(fresh, task)
    assert train(make(*overrides, "seed=1"), 0, 1) != train(make(*overrides), 0, 1)


def test_label_noise_is_a_share_of_the_training_labels_and_stays() -> None:
    clean, noisy, again = make(), make("task.label_noise=0.4"), make("task.label_noise=0.4")
    changed = (clean.data.train_y != noisy.data.train_y).float().mean()
    # Of 40 % that are drawn anew, one in ten comes out as it was.
    assert 0.32 < changed < 0.40
    assert torch.equal(noisy.data.train_y, again.data.train_y)
    assert torch.equal(noisy.data.test_y, clean.data.test_y)
    other = make("task.label_noise=0.4", "seed=1")
    assert not torch.equal(other.data.train_y, noisy.data.train_y)


def test_calibration_shows_the_same_training_images_each_time() -> None:
    task = make("task.pad=1", "task.flip=true", "task.calibration_batches=3")
    first, second = ([x.clone() for x in task.calibration()] for _ in range(2))
    assert len(first) == 3
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    train(task, 0, 20)
    assert recalibrate(task.averaged(), task.calibration()) == 3
    norm = next(m for m in task.averaged().modules() if isinstance(m, torch.nn.BatchNorm2d))
    convolution = next(m for m in task.averaged().modules() if isinstance(m, torch.nn.Conv2d))
    with torch.no_grad():
        means = [convolution(x).mean((0, 2, 3)) for x in first]
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))


def test_pixels_are_centred_and_scaled() -> None:
    task = make()
    x: Tensor = task.data.train_x
    assert float(x.mean()) == pytest.approx(0, abs=1e-4)
    assert float(x.std()) == pytest.approx(1, abs=1e-4)


def test_folders_are_trained_on_and_measured(tmp_path: Path) -> None:
    overrides = [
        "task.data=imagenet",
        "task.image_size=16",
        f"data_dir={photographs(tmp_path)}",
        "batch_size=8",
    ]
    task = make(*overrides)
    train(task, 0, 4)
    found = evaluated(task)
    assert found.keys() == task.metrics.keys()
    assert found["top1"] in [pytest.approx(100 * right / 12) for right in range(13)]
    assert task.measured_with["top1"] == "imagenet, 12 test images"
    torch.save(task.state_dict(), buffer := io.BytesIO())
    list(task.calibration())
    losses = train(task, 4, 7)
    fresh = make(*overrides, "workers=1")
    fresh.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    assert train(fresh, 4, 7) == losses


def test_folders_that_do_not_fit_are_the_users_to_fix(tmp_path: Path) -> None:
    place = ["task.data=imagenet", "task.image_size=16", f"data_dir={tmp_path}"]
    with pytest.raises(UserError, match=r"task\.data=imagenet: not found in .*imagenet.*\n.*image-net\.org"):
        make(*place)
    photographs(tmp_path)
    held_out = tmp_path / "imagenet" / "val"
    (held_out / "n05").rename(held_out / "n99")
    with pytest.raises(UserError, match=r"do not have the same classes"):
        make(*place)
    held_out.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=str(held_out)):
        make(*place)


def test_fewer_than_five_classes_have_no_top5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = photographs(tmp_path) / "imagenet"
    for kind in range(3, 6):
        for part in ("train", "val"):
            shutil.rmtree(folder / part / f"n0{kind}")
    words = (
        "task.data=imagenet",
        "task.model=cnn",
        "task.image_size=16",
        f"data_dir={tmp_path}",
        "batch_size=4",
    )
    task = make(*words)
    assert "3 classes, so no top-5 accuracy" in capsys.readouterr().err  # before training
    assert list(task.metrics) == list(evaluated(task)) == ["top1", "nll"]
    assert list(Task.metrics) == ["top1", "top5", "nll"]
