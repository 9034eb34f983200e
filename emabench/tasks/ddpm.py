"""Denoising diffusion (Ho, Jain, Abbeel 2020): a U-Net learns the noise in images; samples are measured.

The article's §16.1. Published: FID 3.17 with β = 0.9999; the same checkpoint without averaging 12.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.utils import save_image

from emabench.config import Count, Fraction, Positive, Section
from emabench.data import images
from emabench.data.batches import Batches
from emabench.metrics.image_quality import ImageQuality
from emabench.tasks import base
from emabench.tasks.base import Direction

SAMPLE_BATCH = 500


class Options(Section):
    """The data, the network, the noise and the sampler."""

    name: Literal["ddpm"]
    data: Literal["digits", "fashion_mnist", "cifar10"]
    image_size: Annotated[int, Field(ge=8, multiple_of=4)]  # images are resized to it
    channels: Annotated[list[Count], Field(min_length=1)]  # per resolution, the finest first
    layers: Count  # residual blocks per resolution
    attention: list[bool]  # per resolution
    groups: Count  # of group normalisation; divides every channel count
    dropout: Fraction
    flip: bool  # random horizontal flips
    timesteps: Count  # of the diffusion
    beta_start: Positive  # of its linear noise schedule
    beta_end: Positive
    sampler: Literal["ddpm", "ddim"]
    sampling_steps: Count
    samples: Annotated[int, Field(ge=20)]  # per set of weights
    inception_weights: str | None  # a file; None: torch-fidelity downloads it (colour images alone)

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        channels, halvings = self.channels, len(self.channels) - 1
        if len(self.attention) != len(channels):
            raise ValueError(f"attention={self.attention}: takes one value for each of channels={channels}")
        if any(width % self.groups for width in channels):
            raise ValueError(f"groups={self.groups}: has to divide each of channels={channels}")
        if self.image_size % 2**halvings:
            raise ValueError(
                f"image_size={self.image_size}: has to be halved {halvings} times, a multiple of {2**halvings}"
            )
        if self.sampling_steps > self.timesteps:
            raise ValueError(f"sampling_steps={self.sampling_steps}: is more than timesteps={self.timesteps}")
        return self


def unet(options: Options, channels: int) -> UNet2DModel:
    """The U-Net. The paper's options give Ho et al.'s network: 35.7 M parameters (`google/ddpm-cifar10-32`)."""
    down = ["AttnDownBlock2D" if a else "DownBlock2D" for a in options.attention]
    up = ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(options.attention)]
    return UNet2DModel(
        sample_size=options.image_size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(options.channels),
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        layers_per_block=options.layers,
        norm_num_groups=options.groups,
        dropout=options.dropout,
        attention_head_dim=None,  # one head
        add_attention=any(options.attention),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )


class Task(base.Task):
    """A DDPM, measured by FID, IS and KID of what its weights sample."""

    metrics: ClassVar[Mapping[str, Direction]] = {
        "fid": Direction.LOWER,
        "is": Direction.HIGHER,
        "kid": Direction.LOWER,
    }

    def __init__(self, options: Options, context: base.Context) -> None:
        self.options, self.context, self.device = options, context, context.device
        real = images.resized(images.load(options.data, context.data_dir, train=True), options.image_size)
        self.images = (real.images.float() / 127.5 - 1).to(self.device)
        self.model = unet(options, real.images.shape[1]).to(self.device)
        self.trained = context.parallel(self.model)
        self.noise = DDPMScheduler(
            num_train_timesteps=options.timesteps,  # by name: from_config forgets what is given by position
            beta_start=options.beta_start,
            beta_end=options.beta_end,
            variance_type="fixed_large",
        )
        self.optimizer = context.optimizer(self.model.parameters())
        self.batches = Batches(len(real), context.batch_size, context.seed)
        self.quality = ImageQuality(real, self.device, context.cache_dir, options.inception_weights)
        self.samples = torch.empty(0)

    @property
    def measured_with(self) -> Mapping[str, str]:
        o = self.options
        protocol = f"{o.samples} samples, {o.sampler.upper()} of {o.sampling_steps} steps"
        against = f"{self.quality.label}; {protocol}, against {len(self.images)} training images of {o.data}"
        return {"fid": against, "is": f"{self.quality.label}; {protocol}", "kid": against}

    def averaged(self) -> nn.Module:
        return self.model

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images, the noise to add, and the time steps to add it for."""
        rng = self.context.generator("noise", step, self.device)
        x = self.images[self.batches.indices(step).to(self.device)]
        if self.options.flip:
            flipped = torch.rand(len(x), 1, 1, 1, generator=rng, device=self.device) < 0.5
            x = torch.where(flipped, x.flip(3), x)
        noise = torch.randn(x.shape, generator=rng, device=self.device)
        t = torch.randint(self.options.timesteps, (len(x),), generator=rng, device=self.device)
        return self.context.shard(x), self.context.shard(noise), self.context.shard(t)

    def train_step(self, batch: tuple[Tensor, Tensor, Tensor], step: int) -> Mapping[str, Tensor | float]:
        x, noise, t = batch
        predicted = self.trained(self.noise.add_noise(x, noise, t), t).sample
        loss = F.mse_loss(predicted.float(), noise)
        norm = self.optimizer.step(loss, step)
        return {"loss": loss} | ({} if norm is None else {"grad_norm": norm})

    def evaluate(self) -> Mapping[str, float]:
        self.samples = torch.cat(
            [
                self._sample(start, min(SAMPLE_BATCH, self.options.samples - start))
                for start in range(0, self.options.samples, SAMPLE_BATCH)
            ]
        )
        return self.quality.measure(self.samples)

    def _sample(self, start: int, count: int) -> Tensor:
        """Samples `start` to `start + count`, uint8; the noise does not depend on the weights."""
        rng = self.context.generator("sample", start, self.device)
        scheduler_class = DDIMScheduler if self.options.sampler == "ddim" else DDPMScheduler
        scheduler = scheduler_class.from_config(self.noise.config)
        scheduler.set_timesteps(self.options.sampling_steps)
        x = torch.randn((count, *self.images.shape[1:]), generator=rng, device=self.device)
        for t in scheduler.timesteps:
            noise = self.model(x, t.to(self.device)).sample
            x = scheduler.step(noise.float(), t, x, generator=rng).prev_sample
        return ((x + 1) * 127.5).round().clamp(0, 255).byte().cpu()

    def references(self) -> Mapping[str, float]:
        ceiling = float(self.quality.real.classes) if self.images.shape[1] == 1 else 1008.0
        return self.quality.references() | {"is_ceiling": ceiling}

    def save_artifacts(self, directory: Path) -> None:
        grid = self.samples[:64].float() / 255
        scale = max(1, 24 // grid.shape[-1])
        save_image(
            F.interpolate(grid, scale_factor=scale, mode="nearest"), directory / "samples.png", padding=1
        )

    def export(self, directory: Path) -> None:
        """A diffusers pipeline: `DDPMPipeline.from_pretrained(directory)` loads it."""
        DDPMPipeline(self.model, self.noise).save_pretrained(directory)

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
