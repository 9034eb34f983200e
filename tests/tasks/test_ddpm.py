"""Diffusion: the published network, samplers that sample, steps that can be resumed, a pipeline that loads."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline
from PIL import Image
from torch import Tensor, nn

from emabench.compose import configuration
from emabench.config import checked
from emabench.errors import UserError
from emabench.metrics import features
from emabench.seeding import seed_default
from emabench.tasks.ddpm import Options, Task, unet
from emabench.training.build import build_task
from emabench.training.progress import Progress

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick_features(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A feature network of a few steps, in a cache of its own: these tests are of the task."""
    train = features._train
    monkeypatch.setattr(features, "_train", lambda *args: train(*args, steps=5))
    monkeypatch.setenv("EMABENCH_CACHE", str(tmp_path_factory.mktemp("cache")))


def make(*overrides: str) -> Task:
    config = configuration(["task=ddpm", "scale=smoke", *overrides])
    task = build_task(config, CPU, Progress("test", config.steps))
    assert isinstance(task, Task)
    return task


def train(task: Task, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        seed_default(0, "step", step, CPU)  # as the loop does: dropout draws from torch's own generator
        losses.append(float(torch.as_tensor(task.train_step(task.batch(step), step)["loss"]).detach()))
    return losses


def weights(task: Task) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.averaged().state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def evaluated(task: Task) -> dict[str, float]:
    task.averaged().eval()
    found = dict(task.evaluate())
    task.averaged().train()
    return found


def test_the_papers_network_has_the_papers_size() -> None:
    """Ho et al. 2020, appendix B: 35.7 million parameters on CIFAR-10, one attention head at 16×16."""
    config = configuration(["task=ddpm", "scale=paper"])
    options = checked(Options, config.task, at="task")
    net = unet(options, 3)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(35.7e6, rel=2e-3)
    assert [type(block).__name__ for block in net.down_blocks] == [
        "DownBlock2D",
        "AttnDownBlock2D",
        "DownBlock2D",
        "DownBlock2D",
    ]
    assert net.down_blocks[1].attentions[0].heads == 1
    assert {module.p for module in net.modules() if isinstance(module, nn.Dropout)} >= {0.1}
    assert (config.steps, config.batch_size, config.clip.max_norm) == (800_000, 128, 1.0)
    assert (config.optimizer.name, config.optimizer.lr, config.schedule.warmup) == ("adam", 2e-4, 5000)
    assert (options.timesteps, options.beta_start, options.beta_end) == (1000, 1e-4, 0.02)
    assert (options.sampler, options.sampling_steps, options.samples) == ("ddpm", 1000, 50_000)


def test_a_step_depends_on_state_seed_and_step_alone() -> None:
    overrides = ["task.dropout=0.3", "task.flip=true"]
    task = make(*overrides)
    train(task, 0, 5)
    torch.save(task.state_dict(), buffer := io.BytesIO())
    evaluated(task)  # measuring leaves training as it was
    losses = train(task, 5, 9)
    fresh = make(*overrides)
    fresh.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    assert train(fresh, 5, 9) == losses
    assert same(weights(fresh), weights(task))
    assert train(make(*overrides, "seed=1"), 0, 1) != train(make(*overrides), 0, 1)


def test_the_loss_falls() -> None:
    losses = train(make("task.channels=[16]", "batch_size=32"), 0, 100)
    assert sum(losses[-20:]) / 20 < 0.6 * sum(losses[:5]) / 5


class Knows(nn.Module):
    """Predicts the noise in x exactly where every image of the data is `image`."""

    def __init__(self, image: Tensor, kept: Tensor) -> None:
        super().__init__()
        self.image, self.kept = image, kept

    def forward(self, x: Tensor, t: Tensor) -> Any:
        kept = self.kept[t]
        return type("Output", (), {"sample": (x - kept.sqrt() * self.image) / (1 - kept).sqrt()})


@pytest.mark.parametrize("sampler", ["task.sampler=ddim", "task.sampler=ddpm"])
@pytest.mark.parametrize("steps", [10, 50])
def test_samplers_return_the_data_where_the_noise_is_known(sampler: str, steps: int) -> None:
    task = make(sampler, "task.timesteps=50", f"task.sampling_steps={steps}", "task.beta_end=0.1")
    image = (torch.arange(64) * 4).byte().view(1, 1, 8, 8)
    task.model = Knows(image / 127.5 - 1, task.noise.alphas_cumprod)  # type: ignore[assignment]
    sampled = task._sample(0, 3)
    assert sampled.dtype == torch.uint8
    assert (sampled.int() - image.int()).abs().max() <= 1


def test_every_set_of_weights_is_given_the_same_noise() -> None:
    task = make("task.sampler=ddpm")
    first = evaluated(task)
    before = task.samples
    torch.rand(100)  # what the run drew in between does not matter
    assert evaluated(task) == first
    assert torch.equal(task.samples, before)
    train(task, 0, 3)
    assert evaluated(task) != first
    assert len(before.flatten(1).unique(dim=0)) == len(before)  # and each image its own


def test_the_export_is_a_pipeline_that_samples_the_same(tmp_path: Path) -> None:
    task = make("task.sampler=ddpm", "task.sampling_steps=20", "task.samples=20")
    train(task, 0, 3)
    evaluated(task)
    task.export(tmp_path)
    pipeline = DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    draw = task.context.generator("sample", 0)
    images = pipeline(20, generator=draw, num_inference_steps=20, output_type="np").images
    again = torch.from_numpy(images * 255).round().byte().permute(0, 3, 1, 2)
    assert (again.int() - task.samples.int()).abs().max() <= 1  # rounded once more on the way


def test_samples_are_saved_as_a_picture(tmp_path: Path) -> None:
    task = make("task.samples=70")
    evaluated(task)
    task.save_artifacts(tmp_path)
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.width >= 8 * 8


def test_references_and_what_it_was_measured_with() -> None:
    task = make()
    evaluated(task)
    found = task.references()
    assert 1 < found["is_real"] <= found["is_ceiling"] == 10
    assert found["fid_real_halves"] > 0
    assert task.measured_with.keys() == task.metrics.keys()
    assert "classifier" in task.measured_with["fid"]
    assert "40 samples" in task.measured_with["is"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.attention=[true,false]", r"task\.attention=\[True, False\]: takes one value for each"),
        ("task.groups=3", r"task\.groups=3: has to divide"),
        ("task.sampling_steps=21", r"task\.sampling_steps=21: is more than timesteps=20"),
        ("task.image_size=10", r"task\.image_size=10"),
        ("task.data=mnist", r"task\.data=mnist"),
        ("task.dropout=2.0", r"task\.dropout=2\.0"),
    ],
)
def test_options_that_do_not_fit_are_the_users_to_fix(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(override)


def test_resolutions_that_cannot_be_halved_are_reported() -> None:
    with pytest.raises(UserError, match=r"task\.image_size=12.*multiple of 8"):
        make("task.image_size=12", "task.channels=[8,8,8,8]", "task.attention=[false,false,false,false]")
