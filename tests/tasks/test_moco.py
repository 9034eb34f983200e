"""MoCo: the loss, the queue, the key encoder, what stands in their place, and the data at paper scale."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from emabench.compose import configuration
from emabench.errors import UserError
from emabench.tasks import moco
from emabench.tasks.moco import Task, info_nce
from emabench.training.build import build_task
from emabench.training.progress import Progress

CPU = torch.device("cpu")


def make(tmp_path: Path, *overrides: str) -> Task:
    config = configuration(
        ["task=moco", "scale=smoke", f"results_dir={tmp_path}", f"data_dir={tmp_path}", *overrides]
    )
    task = build_task(config, CPU, Progress("test", config.steps))
    assert isinstance(task, Task)
    return task


def test_info_nce_is_the_log_probability_of_the_positive() -> None:
    draw = torch.Generator().manual_seed(0)
    queries, keys, negatives = (
        F.normalize(torch.randn(n, 6, generator=draw, dtype=torch.float64), dim=1) for n in (3, 3, 5)
    )
    expected = 0.0
    for query, key in zip(queries, keys, strict=True):
        own = math.exp(float(query @ key) / 0.2)
        others = sum(math.exp(float(query @ negative) / 0.2) for negative in negatives)
        expected -= math.log(own / (own + others)) / 3
    assert float(info_nce(queries, keys, negatives, 0.2)) == pytest.approx(expected)


def test_a_guess_loses_what_the_reference_says(tmp_path: Path) -> None:
    task = make(tmp_path)
    alike = F.normalize(torch.ones(16, 8), dim=1)
    found = info_nce(alike, alike, alike[:1].expand(task.options.queue, -1), 0.1)
    assert float(found) == pytest.approx(task.references()["loss_of_chance"])


def test_representations_have_length_1_and_probes_see_the_layer_below(tmp_path: Path) -> None:
    task = make(tmp_path)
    x = torch.randn(5, 1, 8, 8)
    assert task.model(x).norm(dim=1).tolist() == pytest.approx([1] * 5)
    assert task.model(x).shape == (5, task.options.projection)
    assert task.model.features(x).shape == (5, task.options.hidden[-1])


def test_the_queue_holds_the_latest_keys(tmp_path: Path) -> None:
    task = make(tmp_path)  # room for four batches of 16
    start = task.memory.clone()
    made = []
    inner = task._encode_keys
    task._encode_keys = lambda x, step: made.append(inner(x, step)) or made[-1]  # type: ignore[assignment, func-returns-value, method-assign]
    for step in range(3):
        task.train_step(task.batch(step), step)
    assert torch.equal(task.memory, torch.cat([*made, start[48:]]))
    for step in range(3, 6):
        task.train_step(task.batch(step), step)
    assert torch.equal(task.memory, torch.cat([made[4], made[5], made[2], made[3]]))


def test_a_step_is_that_of_a_plain_implementation(tmp_path: Path) -> None:
    task = make(tmp_path, "ema.decay=0.8")
    query, key = nn.Sequential(), nn.Sequential()
    for net in (query, key):
        layers = [
            type(m)(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m
            for m in [*task.model.trunk, task.model.head]
        ]
        net.extend(layers)
        net.load_state_dict(dict(zip(net.state_dict(), task.model.state_dict().values(), strict=True)))
    optimizer = torch.optim.SGD(query.parameters(), lr=0.06, momentum=0.9)
    queue = task.memory.clone()
    for step in range(5):
        _, first, second = task.data.views(step)
        logged = task.train_step(task.batch(step), step)
        q = F.normalize(query(first), dim=1)
        with torch.no_grad():
            k = F.normalize(key(second), dim=1)
        logits = torch.cat([torch.einsum("nc,nc->n", q, k)[:, None], q @ queue.T], 1) / 0.1
        loss = F.cross_entropy(logits, torch.zeros(16, dtype=torch.long))
        assert float(logged["loss"]) == pytest.approx(float(loss.detach()), rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for mine, theirs in zip(key.parameters(), query.parameters(), strict=True):
            mine.data.mul_(0.8).add_(theirs.data, alpha=0.2)
        queue[step * 16 % 64 :][:16] = k
    for own, plain in ((task.model, query), (task.target.module, key)):
        for a, b in zip(own.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_decay_0_makes_keys_with_the_trained_encoder(tmp_path: Path) -> None:
    task = make(tmp_path, "ema.decay=0")
    for step in range(3):
        task.train_step(task.batch(step), step)
        for kept, live in zip(task.target.module.parameters(), task.model.parameters(), strict=True):
            assert torch.equal(kept, live)


def test_the_bank_keeps_what_it_saw_of_every_image(tmp_path: Path) -> None:
    task = make(tmp_path, "task.method=bank", "task.bank_momentum=0.25")
    assert len(task.memory) == len(task.data)
    before = task.memory.clone()
    indices, first, _ = task.data.views(0)
    with torch.no_grad():
        queries = task.model(first)
    task.train_step(task.batch(0), 0)
    expected = F.normalize(0.25 * before[indices] + 0.75 * queries, dim=1)
    torch.testing.assert_close(task.memory[indices], expected)
    others = torch.ones(len(before), dtype=torch.bool)
    others[indices] = False
    assert torch.equal(task.memory[others], before[others])


def test_a_random_encoder_stays_as_it_was(tmp_path: Path) -> None:
    task = make(tmp_path, "task.method=random")
    before = [p.clone() for p in task.model.parameters()]
    for step in range(3):
        assert math.isfinite(float(task.train_step(task.batch(step), step)["loss"]))
    assert all(torch.equal(a, b) for a, b in zip(before, task.model.parameters(), strict=True))


def test_training_finds_the_own_key_and_measuring_draws_nothing(tmp_path: Path) -> None:
    task = make(tmp_path, "task.queue=256", "batch_size=64", "steps=200", "task.hidden=[64,32]")
    losses = [float(task.train_step(task.batch(step), step)["loss"]) for step in range(200)]
    assert sum(losses[-20:]) / 20 < task.references()["loss_of_chance"] - 0.4
    with torch.no_grad():
        assert task.evaluate() == task.evaluate()


def test_views_of_an_image_are_of_that_image_and_differ(tmp_path: Path) -> None:
    task = make(tmp_path)
    indices, first, second = task.data.views(3)
    assert not torch.equal(first, second)
    assert torch.equal(first, task.data.views(3)[1])
    whole = make(tmp_path, "task.crop=1", "task.jitter=0", "task.flip=false")
    indices, first, second = whole.data.views(3)
    data = whole.data
    assert isinstance(data, moco._InMemory)
    torch.testing.assert_close(first, second)  # nothing is left to differ in
    torch.testing.assert_close(first, data.train_x[indices], atol=1e-4, rtol=1e-4)


def test_a_mirrored_view_is_the_mirror_image(tmp_path: Path) -> None:
    options = make(tmp_path, "task.crop=1", "task.jitter=0", "task.flip=true").options
    x = torch.randn(40, 2, 6, 6)
    seen = moco.view(x, options, torch.Generator().manual_seed(0))
    plain = (seen - x).abs().amax((1, 2, 3)) < 1e-4
    mirrored = (seen - x.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert bool((plain ^ mirrored).all())
    assert 8 < int(plain.sum()) < 32


@pytest.mark.parametrize(("queue", "fits"), [(8, 16), (40, 32), (63, 64)])
def test_a_queue_that_does_not_fit_the_batch_is_reported(tmp_path: Path, queue: int, fits: int) -> None:
    with pytest.raises(UserError, match=rf"^task\.queue={queue}: .*batch_size=16.* {fits} say$"):
        make(tmp_path, f"task.queue={queue}")


def test_a_class_list_is_for_imagenet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task\.classes=list\.txt: is for task\.data=imagenet"):
        make(tmp_path, "task.classes=list.txt")


# -- paper scale, in small ----------------------------------------------------------------------------------------


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Four classes of six images in ImageNet's form, and a list of three of them."""
    draw = torch.Generator().manual_seed(0)
    for split, count in (("train", 6), ("val", 2)):
        for number in range(4):
            folder = tmp_path / "imagenet" / split / f"n{number}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(256, (24, 24, 3), generator=draw, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.JPEG")
    (tmp_path / "three.txt").write_text("n3\nn0\nn2\n")
    return tmp_path


FOLDERS = [
    "task.data=imagenet",
    "task.classes=three.txt",
    "task.image_size=16",
    "batch_size=8",
    "task.queue=16",
]


def test_only_listed_classes_are_used(imagenet: Path) -> None:
    task = make(imagenet, *FOLDERS)
    data = task.data
    assert isinstance(data, moco._Folders)
    assert (data.classes, len(data), data.test_size, data.labelled) == (3, 18, 6, 18)
    labels = torch.cat([y for _, y in data.test_images()])
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert {Path(path).parent.name for path, _ in data.held_out.files.samples} == {"n0", "n2", "n3"}
    assert task.measured_with["linear_probe"] == "ridge, all labels, 6 test images of imagenet (three)"


def test_probes_learn_from_all_classes_alike(imagenet: Path) -> None:
    task = make(imagenet, *FOLDERS, "task.probe_images=9")
    labels = torch.cat([y for _, y in task.data.probe_images()])
    assert torch.bincount(labels).tolist() == [3, 3, 3]
    assert task.measured_with["knn"] == "5 neighbours, 9 labels, 6 test images of imagenet (three)"
    assert len(task.data) == 18


def test_resnet_trains_on_folders_and_goes_on_where_it_was(imagenet: Path) -> None:
    words = [*FOLDERS, "task.model=resnet50", "task.image_size=32", "task.shuffle=2", "task.probe=logistic"]
    task, again = make(imagenet, *words), make(imagenet, *words)
    task.model.train()
    again.model.train()
    task.train_step(task.batch(0), 0)
    own = [name for name, _ in task.target.module.named_buffers()]
    assert own
    again.load_state_dict(task.state_dict())
    assert float(task.train_step(task.batch(1), 1)["loss"]) == float(
        again.train_step(again.batch(1), 1)["loss"]
    )
    for a, b in zip(task.target.module.buffers(), again.target.module.buffers(), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        task.model.eval()
        assert all(math.isfinite(value) for value in task.evaluate().values())


def test_keys_come_back_in_the_order_of_their_queries(tmp_path: Path) -> None:
    task = make(tmp_path, "task.shuffle=4", "ema.decay=0")
    x = torch.randn(16, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(task._encode_keys(x, 0), task.model(x))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            None,
            r"task\.classes=wrong\.txt: .* cannot be read.*\n.*imagenet100\.txt of github\.com/HobbitLong/CMC",
        ),
        ("", "is empty"),
        ("n0 n7 n8", "n7 and 1 more are not in"),
    ],
)
def test_a_wrong_class_list_is_reported(imagenet: Path, text: str | None, message: str) -> None:
    if text is not None:
        (imagenet / "wrong.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        make(imagenet, *FOLDERS, "task.classes=wrong.txt")
