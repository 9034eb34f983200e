"""BERT: what is masked and what follows, what is measured and what it leaves alone, the law of §17.2, the shape."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import BertForPreTraining

from emabench.averaging import Averager
from emabench.compose import configuration
from emabench.data.text_tokens import Stream
from emabench.errors import UserError
from emabench.seeding import generator
from emabench.tasks.bert import Options, Task
from emabench.tasks.bert.finetune import Classifier, Examples, replaced_token
from emabench.tasks.bert.model import Model
from emabench.tasks.bert.sequences import Batch, Sequences
from emabench.tasks.bert.trace import Trace, detrended
from emabench.training.build import build_task
from emabench.training.progress import Progress

CPU = torch.device("cpu")
SPECIAL = {"[PAD]": 0, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make(tmp_path: Path, *overrides: str) -> Task:
    config = configuration(["task=bert", "scale=smoke", f"results_dir={tmp_path}", *overrides])
    task = build_task(config, CPU, Progress("test", config.steps))
    assert isinstance(task, Task)
    return task


def sequences(length: int = 64, count: int = 5000) -> Sequences:
    """Over a text in which every token tells its place: 10, 11, 12, …"""
    options = Options(**configuration(["task=bert", f"task.length={length}"]).task)
    return Sequences(Stream(np.arange(10, 10 + count, dtype=np.uint32), CPU), SPECIAL, 10 + count, options)


def unmasked(batch: Batch) -> torch.Tensor:
    return batch.ids.scatter(1, batch.positions, batch.targets)


# -- batches --------------------------------------------------------------------------------------------------


def test_segments_are_text_and_the_second_follows_or_does_not() -> None:
    batch = sequences().draw(400, generator(0, "test"))
    follows = 0
    for ids, segments, is_next in zip(unmasked(batch), batch.segments, batch.is_next, strict=True):
        assert ids[0] == 2 and ids[-1] == 3
        first = ids[segments == 0][1:-1]
        second = ids[segments == 1][:-1]
        assert ids[segments == 0][-1] == 3
        assert len(first) + len(second) == 61 and min(len(first), len(second)) >= 15
        for piece in (first, second):
            assert torch.equal(piece.diff(), torch.ones_like(piece[1:]))
        assert bool(is_next) == (second[0] == first[-1] + 1)
        follows += int(is_next)
    assert 150 < follows < 250


def test_fifteen_per_cent_are_masked_80_10_10() -> None:
    drawn = sequences()
    batch = drawn.draw(2000, generator(0, "test"))
    assert batch.positions.shape == (2000, 9)  # 15 % of 61
    assert all(len(set(row.tolist())) == 9 for row in batch.positions[:50])
    whole = unmasked(batch)
    assert not torch.isin(batch.targets, torch.tensor([2, 3])).any()  # never the frame
    shown = batch.ids.gather(1, batch.positions)
    masked = (shown == 4).float().mean()
    same = (shown == batch.targets).float().mean()
    assert masked == pytest.approx(0.8, abs=0.01)
    assert same == pytest.approx(0.1, abs=0.01)
    assert 1 - masked - same == pytest.approx(0.1, abs=0.01)
    untouched = torch.ones_like(whole, dtype=torch.bool).scatter(1, batch.positions, False)
    assert torch.equal(batch.ids[untouched], whole[untouched])
    places = torch.bincount(batch.positions.flatten(), minlength=64)[1:-1]
    assert places.min() > 0.5 * places.float().mean()  # anywhere in the sequence


def test_a_batch_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    one, two, other = make(tmp_path), make(tmp_path), make(tmp_path, "seed=1")
    one.train_step(one.batch(0), 0)  # whatever was drawn before

    def ids(task: Task, step: int) -> torch.Tensor:
        return task.train.draw(8, task.context.generator("batch", step)).ids

    assert torch.equal(ids(one, 5), ids(two, 5))
    assert not torch.equal(ids(one, 5), ids(one, 6))
    assert not torch.equal(ids(one, 5), ids(other, 5))
    for a, b in zip(one.validation, other.validation, strict=True):  # the same for all seeds
        assert torch.equal(a.ids, b.ids)


# -- the model ------------------------------------------------------------------------------------------------


def test_perplexity_is_that_of_transformers_own_loss(tmp_path: Path) -> None:
    task = make(tmp_path, "task.validation_sequences=30")
    model = task.model.bert.eval()
    total, count = 0.0, 0
    for batch in task.validation:
        labels = torch.full_like(batch.ids, -100).scatter(1, batch.positions, batch.targets)
        with torch.no_grad():
            scores = model(batch.ids, token_type_ids=batch.segments).prediction_logits.double()
        probability = scores.softmax(-1).gather(-1, labels.clamp_min(0)[..., None])[..., 0]
        total -= float(probability[labels >= 0].log().sum())
        count += int((labels >= 0).sum())
    texts = [Tokenizer.from_file(str(task.text.folder / "tokenizer.json")).id_to_token(i) for i in range(512)]
    characters = sum(len(texts[int(i)]) for batch in task.validation for i in batch.targets.flatten())
    with torch.no_grad():
        measured = task.evaluate()
    assert measured == {
        "perplexity": pytest.approx(math.exp(total / count), rel=1e-5),
        "nats_per_character": pytest.approx(total / characters, rel=1e-5),
    }  # along the way: alone
    assert count == 30 * 2


def test_bert_base_has_110_million_weights() -> None:
    config = configuration(["task=bert", "scale=paper"])
    with torch.device("meta"):
        model = Model(Options(**config.task), 30_522, 0)
    count = sum(p.numel() for p in model.parameters())
    d, f = 768, 3072
    layer = 4 * (d * d + d) + (d * f + f) + (f * d + d) + 2 * 2 * d
    embeddings = (30_522 + 512 + 2) * d + 2 * d
    heads = (
        (d * d + d) + (d * d + d) + 2 * d + 30_522 + (2 * d + 2)
    )  # pooler, transform and its norm, bias, NSP
    assert count == 12 * layer + embeddings + heads == 110_106_428
    assert (config.steps, config.batch_size, config.optimizer.lr) == (1_000_000, 256, 1e-4)


def test_embedding_and_prediction_head_are_one_tensor_and_averaged_once(tmp_path: Path) -> None:
    task = make(tmp_path)
    embedding, head = task.model.bert.bert.embeddings.word_embeddings, task.model.bert.cls.predictions.decoder
    assert head.weight is embedding.weight
    averager = Averager(task.model, {"ema": {"kind": "ema", "decay": 0.9}})
    assert sum(f.tensor.shape == embedding.weight.shape for f in averager.followed) == 1
    for step in range(2):
        task.train_step(task.batch(step), step)
        averager.update()
    with averager.applied("ema"):
        assert head.weight is embedding.weight


def test_without_layer_norm_there_is_none_and_it_still_learns(tmp_path: Path) -> None:
    task = make(tmp_path, "task.layer_norm=false", "steps=40", "optimizer.lr=5e-3")
    assert not any(isinstance(module, nn.LayerNorm) for module in task.model.modules())
    assert any(isinstance(module, nn.LayerNorm) for module in make(tmp_path).model.modules())
    losses = [float(task.train_step(task.batch(step), step)["loss_masked"]) for step in range(40)]
    assert losses[0] == pytest.approx(math.log(512), rel=0.02)
    assert sum(losses[-10:]) / 10 < losses[0] - 0.3


def test_export_is_read_by_transformers(tmp_path: Path) -> None:
    task = make(tmp_path)
    task.export(tmp_path)
    loaded = BertForPreTraining.from_pretrained(tmp_path).eval()
    task.model.eval()
    ids = torch.randint(512, (2, 16))
    assert torch.equal(loaded(ids).prediction_logits, task.model.bert(ids).prediction_logits)
    assert (tmp_path / "tokenizer.json").is_file()


# -- fine-tuning ----------------------------------------------------------------------------------------------


def finished(task: Task) -> Task:
    for step in range(task.context.steps):
        task.train_step(task.batch(step), step)
    task.model.eval()
    return task


def test_evaluation_leaves_weights_and_generators_alone(tmp_path: Path) -> None:
    task = finished(make(tmp_path, "steps=9"))
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with torch.no_grad():
        first = task.evaluate()
        assert torch.equal(torch.rand(1), expected)
        assert task.evaluate() == first
    assert first.keys() == Task.metrics.keys()
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert all(p.grad is None or p.requires_grad for p in task.model.parameters())


def test_examples_have_one_token_in_three_exchanged_or_none() -> None:
    text = Stream(np.arange(10, 5010, dtype=np.uint32), CPU)
    examples = replaced_token(text, 400, SPECIAL, 64, generator(0, "test"))
    assert (examples.ids[:, 0] == 2).all() and (examples.ids[:, -1] == 3).all()
    in_order = (examples.ids[:, 1:-1].diff(dim=1) == 1).float().mean(1)
    assert torch.equal(in_order == 1, examples.labels == 0)
    assert examples.labels.sum() == 200
    assert in_order[examples.labels == 1].mean() == pytest.approx((2 / 3) ** 2, abs=0.02)


def test_fine_tuning_learns(tmp_path: Path) -> None:
    """Which of two words is in a sequence; the held-out sequences are others."""
    task = finished(make(tmp_path, "steps=8", "task.finetune.steps=60", "task.finetune.lr=5e-3"))
    draws = generator(0, "test")

    def words(count: int) -> Examples:
        ids = torch.randint(20, 300, (count, 16), generator=draws)
        labels = torch.arange(count) % 2
        ids[torch.arange(count), torch.randint(1, 15, (count,), generator=draws)] = 400 + labels
        return Examples(ids, torch.zeros_like(ids), None, labels, 2)

    task.labelled = words(500), words(200)
    with torch.no_grad():
        accuracy = task.evaluate()["finetune_accuracy"]
    assert accuracy > 80
    assert task.references()["chance_accuracy"] == 50


class FakeGlue:
    """Stands for the package `datasets`: rows of two sentences."""

    def load_dataset(self, name: str, config: str | None) -> dict[str, dict[str, Any]]:
        assert (name, config) == ("nyu-mll/glue", "mnli")
        rows: dict[str, Any] = {
            "premise": ["the list is empty", "a", "the value of it " * 9],
            "hypothesis": ["there is no item in the list", "b", "nothing"],
            "label": [0, 2, 1],
        }
        return {"train": rows, "validation_matched": rows}


def test_glue_pairs_are_framed_cut_and_padded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeGlue())
    task = finished(make(tmp_path, "task.finetune.task=mnli", "steps=8", "task.length=20"))
    train, _ = task.labelled
    assert train.classes == 3 and train.labels.tolist() == [0, 2, 1]
    assert train.attention_mask is not None
    for ids, segments, attention_mask in zip(train.ids, train.segments, train.attention_mask, strict=True):
        real = ids[attention_mask]
        assert real[0] == SPECIAL["[CLS]"] and (real == SPECIAL["[SEP]"]).sum() == 2
        assert real[-1] == SPECIAL["[SEP]"] and not ids[~attention_mask].any()
        assert segments[attention_mask][0] == 0 and segments[attention_mask][-1] == 1
    assert train.attention_mask.sum(1).tolist()[2] == 20 > train.attention_mask.sum(1).tolist()[1]
    classifier = Classifier(task.model.bert.bert, 3, task.options).eval()
    with torch.no_grad():
        scores = classifier(train.ids.long(), train.segments.long(), train.attention_mask)
        padded_otherwise = train.ids.long().masked_fill(~train.attention_mask, 7)
        assert torch.allclose(
            classifier(padded_otherwise, train.segments.long(), train.attention_mask), scores, atol=1e-6
        )
        assert 0 <= task.evaluate()["finetune_accuracy"] <= 100


# -- the variance of the weights ------------------------------------------------------------------------------


def traced(model: nn.Module, steps: int, weights: int, decays: list[float]) -> Trace:
    options = SimpleNamespace(weights=weights, steps=steps // 2, lag=5, decays=decays)
    context = SimpleNamespace(
        steps=steps,
        device=CPU,
        generator=lambda purpose: generator(0, purpose),
        all_reduce_mean=lambda loss: loss,
    )
    return Trace(model, options, context)  # type: ignore[arg-type]


def test_on_ar1_weights_the_trace_finds_the_law() -> None:
    """θ_t = ρ θ_{t−1} + ξ on top of a linear drift, which is to be taken for no variance."""
    rho, steps = 0.9, 4000
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5))
    trace = traced(model, steps, 200, [0.5, 0.9])
    state = [torch.zeros_like(p) for p in model.parameters()]
    draws = torch.Generator().manual_seed(0)
    emas = [torch.zeros(200), torch.zeros(200)]
    with torch.no_grad():
        for step in range(steps):
            for s, p in zip(state, model.parameters(), strict=True):
                s.mul_(rho).add_(torch.randn(s.shape, generator=draws))
                p.copy_(s + 0.01 * step)
            trace.add(step + 1, torch.tensor(2.0 - 0.001 * step))
            now = trace._in_place()
            emas = [e * b + now * (1 - b) for e, b in zip(emas, (0.5, 0.9), strict=True)]
    found = trace.statistics()
    assert found["rho_1"] == pytest.approx(rho, abs=0.01)
    assert found["rho_5"] == pytest.approx(rho, abs=0.01)
    assert found["loss_sd"] < 1e-5  # a trend is no variance
    assert float(trace._variances()[0]) / 200 == pytest.approx(1 / (1 - rho**2), rel=0.05)

    assert trace.of_weights_in_place() == {
        "variance_reduction": 1.0,
        "ar1_reduction": pytest.approx(1.0),
        "relative_variance": pytest.approx(
            1 / (1 - rho**2) / 30**2, rel=0.05
        ),  # 30: the drift after 3000 steps
    }
    for beta, ema in zip((0.5, 0.9), emas, strict=True):
        law = (1 - beta) / (1 + beta) * (1 + beta * rho) / (1 - beta * rho)
        put(trace, ema)
        measured = trace.of_weights_in_place()
        assert measured["variance_reduction"] == pytest.approx(1 / law, rel=0.05)
        assert measured["ar1_reduction"] == pytest.approx(1 / law, rel=0.05)
    put(trace, torch.zeros(200))
    assert all(math.isnan(value) for value in trace.of_weights_in_place().values())  # not known


def put(trace: Trace, values: torch.Tensor) -> None:
    """Put values of the traced weights in place."""
    pieces = values.split([len(at) for at in trace.parts])
    with torch.no_grad():
        for parameter, at, piece in zip(trace.parameters, trace.parts, pieces, strict=True):
            parameter.view(-1)[at] = piece


def test_the_averages_of_a_run_are_those_of_its_trace(tmp_path: Path) -> None:
    task = make(tmp_path, "steps=40", "task.variance.steps=20")
    averager = Averager(
        task.model, {f"ema_{b}": {"kind": "ema", "decay": b, "debias": True} for b in (0.9, 0.99)}
    )
    for step in range(40):
        task.train_step(task.batch(step), step)
        averager.update()
    raw = task.trace.of_weights_in_place()
    reductions = [raw["variance_reduction"]]
    for name in averager.names:
        with averager.applied(name):
            measured = task.trace.of_weights_in_place()
        reductions.append(measured["variance_reduction"])
        assert 0 < measured["relative_variance"] < raw["relative_variance"]
    assert reductions[0] == 1 < reductions[1] < reductions[2]


def test_a_trace_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole, first = make(tmp_path), make(tmp_path)
    finished(whole)
    for step in range(15):
        first.train_step(first.batch(step), step)
    second = make(tmp_path)
    second.load_state_dict(first.state_dict())
    second.model.train()
    torch.manual_seed(0)
    assert torch.equal(second.trace.weights, first.trace.weights)
    assert second.done == 15
    for name, value in second.trace.state_dict().items():
        assert torch.equal(value, first.trace.state_dict()[name])


def test_detrending_takes_out_a_line_and_nothing_else() -> None:
    t = torch.arange(50, dtype=torch.float64)[:, None]
    noise = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    line = 4 - 0.3 * t
    assert detrended(line.expand(-1, 2)).abs().max() < 1e-12
    assert torch.allclose(detrended(noise + line), detrended(noise))
    expected = np.polynomial.polynomial.polyfit(t[:, 0].numpy(), noise.numpy(), 1)
    residual = noise.numpy() - expected[0] - t.numpy() * expected[1]
    assert np.allclose(detrended(noise).numpy(), residual)


# -- mistakes -------------------------------------------------------------------------------------------------


def test_mistakes_are_said_in_one_line(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a few words\n" * 5)
    for words, message in (
        (["task.heads=3"], r"^task\.heads=3: does not divide task\.hidden=16$"),
        (
            [f"task.corpus={short}"],
            r"^task\.corpus=.*tokens to \w+ are too few for sequences of 16; give more",
        ),
        (["task.tokenizer=nowhere.json"], r"^task\.tokenizer=nowhere.json: is neither .*leave it null"),
    ):
        with pytest.raises(UserError, match=message):
            make(tmp_path, *words)
