"""Real models, small: train a little, average, apply, export, resume, and compare with float64.

Every situation goes through the same tests; a new one is a function that returns a model and its loss.
"""

from __future__ import annotations

import copy
import functools
import importlib
import io

import pytest
import torch
from torch import nn

from emabench.averaging import EMA, Averager, Mean

SITUATIONS = {}
PROFILES = {"ema": EMA(decay=0.6), "debiased": EMA(decay=0.6, debias=True), "mean": Mean(start=1)}


def situation(*needs, **options):
    """Register a function (→ model, loss of (model, step)) that needs these libraries; options go to Averager."""

    def register(build):
        SITUATIONS[build.__name__] = (needs, options, build)
        return build

    return register


def images(step, size=32, channels=3, batch=2):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(step))


def tokens(step, length=8, vocabulary=40):
    return torch.randint(0, vocabulary, (2, length), generator=torch.Generator().manual_seed(step))


def squares(output):
    """A loss of whatever a model returns: the mean square distance of its first tensor from 1."""
    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return (output.float() - 1).square().mean()


def on_images(model, **options):
    return model, lambda m, step: squares(m(images(step, **options)))


def language(model):
    return model, lambda m, step: m(input_ids=tokens(step), labels=tokens(step)).loss


# -- transformers

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
}


@situation("transformers")
def bert_with_a_tied_decoder():
    from transformers import BertConfig, BertForMaskedLM

    return language(BertForMaskedLM(BertConfig(**TINY, max_position_embeddings=16)))


@situation("transformers")
def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return language(
        GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2))
    )


@situation("transformers")
def llama_with_rotary_caches():
    from transformers import LlamaConfig, LlamaForCausalLM

    return language(LlamaForCausalLM(LlamaConfig(**TINY, num_key_value_heads=1, max_position_embeddings=16)))


@situation("transformers", dtype=torch.float64)
def llama_in_bfloat16():
    model, loss = llama_with_rotary_caches()
    return model.bfloat16(), loss


@situation("transformers")
def t5_with_a_shared_embedding():
    from transformers import T5Config, T5ForConditionalGeneration

    return language(
        T5ForConditionalGeneration(
            T5Config(
                vocab_size=40,
                d_model=16,
                d_kv=8,
                d_ff=16,
                num_layers=1,
                num_heads=2,
                decoder_start_token_id=0,
            )
        )
    )


@situation("transformers")
def mixtral_with_experts():
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(**TINY, num_key_value_heads=1, num_local_experts=2, max_position_embeddings=16)
    return language(MixtralForCausalLM(config))


@situation("transformers")
def mamba():
    from transformers import MambaConfig, MambaForCausalLM

    return language(
        MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4))
    )


@situation("transformers")
def vit_classifier():
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {k: v for k, v in TINY.items() if k != "vocab_size"}
    return on_images(ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8)))


@situation("transformers")
def wav2vec2_with_weight_norm():
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        **TINY,
        conv_dim=(8, 8),
        conv_stride=(4, 4),
        conv_kernel=(8, 8),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        num_feat_extract_layers=2,
        apply_spec_augment=False,
    )
    audio = lambda step: torch.randn(2, 400, generator=torch.Generator().manual_seed(step))  # noqa: E731
    return Wav2Vec2Model(config), lambda m, step: squares(m(audio(step)).last_hidden_state)


@situation("transformers")
def clip():
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    sizes = {k: v for k, v in TINY.items() if k != "vocab_size"}
    text = CLIPTextConfig(**TINY, max_position_embeddings=16, eos_token_id=39, projection_dim=8)
    vision = CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=8)
    model = CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    )
    return model, lambda m, step: m(tokens(step), images(step), return_loss=True).loss


# -- timm


def timm(name, **options):
    import timm

    return on_images(timm.create_model(name, num_classes=3, **options))


@situation("timm")
def timm_resnet():
    return timm("resnet10t", channels=(8, 8, 16, 16), stem_width=8)


@situation("timm", buffers="copy")
def timm_mobilenet_with_copied_statistics():
    return timm("mobilenetv3_small_050")


@situation("timm")
def timm_vision_transformer():
    return timm("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_heads=2)


@situation("timm")
def timm_swin_with_masks_and_indices():
    return timm(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        embed_dim=12,
        depths=(1, 1),
        num_heads=(1, 2),
    )


@situation("timm")
def timm_convnext():
    return timm("convnext_atto", dims=(8, 8, 16, 16), depths=(1, 1, 1, 1))


@situation("timm")
def timm_nfnet_with_standardised_weights():
    return timm("nf_resnet26", stem_chs=8, width_factor=0.1)


# -- diffusers


@situation("diffusers")
def diffusers_unet():
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return model, lambda m, step: squares(m(images(step, size=8), torch.tensor([3, 5])).sample)


@situation("diffusers")
def diffusers_autoencoder():
    from diffusers import AutoencoderKL

    model = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, sample_size=16)
    return model, lambda m, step: squares(m(images(step, size=16)).sample)


@situation("diffusers")
def diffusers_transformer():
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=10,
    )

    def loss(m, step):
        labels = torch.tensor([1, 2])
        return squares(m(images(step, size=8), timestep=torch.tensor([3, 5]), class_labels=labels).sample)

    return model, loss


# -- torchvision


@situation("torchvision")
def torchvision_mobilenet():
    from torchvision.models import mobilenet_v2

    return on_images(mobilenet_v2(width_mult=0.1, num_classes=3, dropout=0.0))


@situation("torchvision")
def torchvision_shufflenet_in_channels_last():
    from torchvision.models import ShuffleNetV2

    model = ShuffleNetV2([1, 1, 1], [8, 8, 16, 16, 32], num_classes=3)
    return on_images(model.to(memory_format=torch.channels_last))


@situation("torchvision", frozen="live")
def torchvision_backbone_with_frozen_statistics():
    from torchvision.models import mobilenet_v2
    from torchvision.ops import FrozenBatchNorm2d

    model = mobilenet_v2(width_mult=0.1, num_classes=3, dropout=0.0, norm_layer=FrozenBatchNorm2d)
    model.features[0].requires_grad_(False)
    return on_images(model)


@situation("torchvision")
def torchvision_vision_transformer():
    from torchvision.models import VisionTransformer

    return on_images(
        VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=3)
    )


# -- peft


def adapted(**options):
    from peft import LoraConfig, get_peft_model

    model, loss = gpt2()
    return get_peft_model(
        model, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, **options)
    ), loss


@situation("peft", "transformers", frozen="live")
def lora_adapters_alone():
    return adapted()


@situation("peft", "transformers", parameters={"*lora_*": "average", "*": "live"})
def dora_by_name():
    return adapted(use_dora=True)


@situation("peft", "transformers")
def lora_with_a_head_that_is_trained_whole():
    return adapted(modules_to_save=["wte"])


# -- lightning


@situation("lightning", "torchmetrics")
def lightning_module_with_a_metric():
    from lightning.pytorch import LightningModule
    from torchmetrics import MeanMetric

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
            self.seen = MeanMetric()

        def forward(self, x):
            return self.net(x)

    return on_rows(Module())


# -- torch


def rows(step, width=4):
    return torch.randn(6, width, generator=torch.Generator().manual_seed(step))


def on_rows(model):
    return model, lambda m, step: squares(m(rows(step)))


@situation()
def a_recurrent_network():
    return nn.LSTM(4, 6, num_layers=2, batch_first=True), lambda m, step: squares(m(rows(step)[None]))


@situation()
def a_transformer_layer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return layer, lambda m, step: squares(m(rows(step, 8)[None]))


@situation()
def a_compiled_model():
    model, loss = on_rows(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)))
    return torch.compile(model, backend="aot_eager"), loss


@situation()
def complex_and_orthogonal_weights():
    class Rotating(nn.Module):
        def __init__(self):
            super().__init__()
            self.phase = nn.Parameter(torch.randn(4, dtype=torch.complex64))
            self.mix = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))

        def forward(self, x):
            return (self.mix(x) * self.phase).abs()

    return on_rows(Rotating())


@situation()
def a_checkpointed_block():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    return on_rows(nn.Sequential(checkpoint_wrapper(nn.Linear(4, 4)), nn.Linear(4, 1)))


@situation()
@pytest.mark.filterwarnings("ignore")
def a_discriminator_with_spectral_norm():
    norm = nn.utils.parametrizations.spectral_norm
    return on_rows(nn.Sequential(norm(nn.Linear(4, 8)), nn.ReLU(), norm(nn.Linear(8, 1))))


def test_there_are_situations_enough():
    assert len(SITUATIONS) >= 25


def values(model):
    """Parameters and floating-point buffers in float64, by the model's own names."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: wide(tensor) for name, tensor in named if tensor.is_floating_point() or tensor.is_complex()}


def wide(tensor):
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64, copy=True)


def output(model, loss, step=99):
    model.eval()
    with torch.no_grad():
        return loss(model, step)


@functools.cache
def missing(library):
    try:
        importlib.import_module(library)
    except ImportError:
        return True
    return False


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SITUATIONS)
def test_a_situation(name):
    needs, options, build = SITUATIONS[name]
    for library in needs:
        if missing(library):
            pytest.skip(f"needs {library}")
    torch.manual_seed(0)
    model, loss = build()
    fresh = copy.deepcopy(model)
    averager = Averager(model, PROFILES, **options)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    averager.attach(optimizer)
    history = [values(model)]

    def train(step):
        model.train()
        optimizer.zero_grad()
        loss(model, step).backward()
        optimizer.step()
        history.append(values(model))

    for step in range(3):
        train(step)
    assert averager.updates == 3

    # averages are the weighted sums of what was seen, in float64
    followed = {id(f.tensor): f for f in averager.followed}
    named = {n: t for n, t in [*model.named_parameters(), *model.named_buffers()] if id(t) in followed}
    assert len(named) == len(followed)
    assert any(not torch.equal(history[0][n], history[-1][n]) for n in named)
    for average, profile in PROFILES.items():
        held = {id(f.tensor): value for f, value in averager.state_of(average)}
        for n, tensor in named.items():
            exact = sum(w * past[n] for w, past in zip(profile.weights(3), history, strict=True))
            tolerance = 1e-9 if options.get("dtype") == torch.float64 else 2e-6
            torch.testing.assert_close(wide(held[id(tensor)]), exact, rtol=tolerance, atol=tolerance)

    # applied is the model that loads the export, and leaves everything as it was
    before, raw = copy.deepcopy(model.state_dict()), output(model, loss)
    with averager.applied("ema"):
        inside, checkpoint = output(model, loss), model.state_dict()
    assert not torch.equal(inside, raw)
    assert torch.equal(output(model, loss), raw)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    exported = averager.export("ema", names="model")
    assert exported.keys() == before.keys() == checkpoint.keys()
    assert all(
        torch.equal(value, exported[key]) for key, value in checkpoint.items() if "num_batches" not in key
    )
    fresh.load_state_dict(exported)
    torch.testing.assert_close(output(fresh, loss), inside, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output(averager.module("ema"), loss), inside, rtol=1e-5, atol=1e-6)

    # a resumed run ends where the other one does
    saved = io.BytesIO()
    torch.save({"model": model.state_dict(), "averager": averager.state_dict()}, saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    fresh.load_state_dict(state["model"])
    resumed = Averager(fresh, PROFILES, **options)
    resumed.load_state_dict(state["averager"])
    train(3)
    fresh.load_state_dict(model.state_dict())
    resumed.update()
    for average in PROFILES:
        theirs = resumed.export(average)
        assert all(torch.equal(value, theirs[key]) for key, value in averager.export(average).items())
