"""The LSTM language model: what it measures, what a chunk is, what is carried on, and the published shape."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from emabench.averaging import Averager
from emabench.compose import configuration
from emabench.errors import UserError
from emabench.tasks.lstm import Chunks, LanguageModel, Layer, Options, Task
from emabench.training.build import build_task
from emabench.training.progress import Progress
from emabench.training.start import run

CPU = torch.device("cpu")


def make(tmp_path: Path, *overrides: str) -> Task:
    config = configuration(["task=lstm", "scale=smoke", f"results_dir={tmp_path}", *overrides])
    task = build_task(config, CPU, Progress("test", config.steps))
    assert isinstance(task, Task)
    return task


def test_perplexity_is_that_of_a_plain_lstm_reading_each_stream_at_once(tmp_path: Path) -> None:
    """Independent: torch's own nn.LSTM on whole streams, probabilities by hand, in float64."""
    (tmp_path / "short.txt").write_text("".join(f"{i}: {i * i * i}\n" for i in range(4000)))
    corpus = f"task.corpus={tmp_path / 'short.txt'}"
    task = make(tmp_path, corpus, "task.layers=2", "task.evaluation_streams=7", "task.bptt=13")
    model = task.model.double().eval()
    layers = []
    for layer in model.layers:
        assert isinstance(layer, Layer)
        plain = nn.LSTM(layer.weight_input.shape[1], layer.width, batch_first=True).double()
        weights = (layer.weight_input, layer.weight_hidden, layer.bias_input, layer.bias_hidden)
        plain.load_state_dict(dict(zip(plain.state_dict(), weights, strict=True)))
        layers.append(plain)
    ids = torch.from_numpy(task.text.valid.astype("int64"))
    columns = (len(ids) - 1) // 7
    nll = 0.0
    for row in range(7):
        piece = ids[row * columns : (row + 1) * columns + 1]
        x = model.embedding(piece[None, :-1])
        for plain in layers:
            x, _ = plain(x)
        probabilities = (x @ model.head.weight.T + model.head.bias)[0].softmax(-1)
        nll -= float(probabilities.detach().gather(1, piece[1:, None]).log().sum())
    task.model.float()
    with torch.no_grad():
        measured = task.evaluate()["perplexity"]
    assert measured == pytest.approx(math.exp(nll / (7 * columns)), rel=1e-5)
    assert measured == pytest.approx(task.text.size, rel=0.1)  # of new weights


def test_the_unigram_reference(tmp_path: Path) -> None:
    corpus = tmp_path / "abc.txt"
    corpus.write_text("aab" * 40_000)
    task = make(tmp_path, f"task.corpus={corpus}")
    entropy = -(2 * math.log(2 / 3) + math.log(1 / 3)) / 3
    assert task.references()["unigram_perplexity"] == pytest.approx(math.exp(entropy), rel=1e-2)


@pytest.mark.parametrize("random", ["true", "false"])
def test_chunks_go_along_the_text_and_start_anywhere(tmp_path: Path, random: str) -> None:
    task = make(tmp_path, f"task.random_bptt={random}", "task.bptt=30", "batch_size=600")
    chunks = task.chunks
    along = [chunks.at(step) for step in range(100)]
    begins = [step for step, (start, _) in enumerate(along) if start == 0]
    assert len(begins) > 3
    for (start, length), (following, _) in itertools.pairwise(along):
        assert following in (0, start + length)
        assert length >= Chunks.SHORTEST
        assert start + length <= task.stream_length
    for step in begins[1:]:
        start, length = along[step - 1]
        assert task.stream_length - start - length < Chunks.SHORTEST  # an epoch reads all of it
    epochs = [along[a:b] for a, b in itertools.pairwise(begins)]
    assert (epochs[0] == epochs[1]) == (random == "false")
    anew = Chunks(task.stream_length, task.options, task.context)
    for step in (99, 3, 57, 0):  # nothing depends on which steps were asked for before
        assert anew.at(step) == along[step]
    mean = sum(length for _, length in along) / len(along)
    assert 24 < mean <= 30


def test_training_reads_the_text_in_order_and_carries_the_hidden_state(tmp_path: Path) -> None:
    """Two chunks in sequence are one chunk of twice the length, as long as the weights stay as they are."""
    task = make(tmp_path, "optimizer.lr=1e-30", "clip.max_norm=null")
    losses = [float(task.train_step(task.batch(step), step)["loss"]) for step in (0, 1)]
    ids = task.train.windows(task.stream_starts, 2 * task.options.bptt + 1)
    logits, *_ = task.model(ids[:, :-1], task.model.initial_state(task.context.batch_size))
    expected = F.cross_entropy(logits.detach().flatten(0, 1), ids[:, 1:].flatten())
    assert sum(losses) / 2 == pytest.approx(float(expected), rel=1e-5)
    state = task.state_dict()
    again = make(tmp_path, "optimizer.lr=1e-30", "clip.max_norm=null", "seed=5")
    again.load_state_dict(state)
    assert float(again.train_step(again.batch(2), 2)["loss"]) == float(
        task.train_step(task.batch(2), 2)["loss"]
    )
    for (h, c), (h2, c2) in zip(task.hidden, again.hidden, strict=True):
        assert torch.equal(h, h2) and torch.equal(c, c2)
        assert h.abs().max() > 0


def test_evaluation_leaves_training_alone(tmp_path: Path) -> None:
    task, untouched = make(tmp_path), make(tmp_path)
    for each in (task, untouched):
        each.train_step(each.batch(0), 0)
    task.model.eval()
    with torch.no_grad():
        first = task.evaluate()
        assert task.evaluate() == first
    assert float(task.train_step(task.batch(1), 1)["loss"]) == float(
        untouched.train_step(untouched.batch(1), 1)["loss"]
    )


def test_dropout_masks_are_the_same_along_a_chunk() -> None:
    options = configuration(["task=lstm", "scale=paper"]).task
    small = options | {
        "layers": 1,
        "embedding": 32,
        "drop_input": 0.0,
        "drop_words": 0.0,
        "drop_weights": 0.0,
    }
    torch.manual_seed(0)
    model = LanguageModel(Options(**small), 50).train()
    _, dropped, raw, _ = model(torch.randint(50, (6, 40)), model.initial_state(6))
    zero = dropped == 0
    assert torch.equal(zero.all(1), zero.any(1))  # a unit is off for the whole chunk or not at all
    assert 0.25 < zero.float().mean() < 0.55  # 0.4 of them
    assert not torch.equal(zero[0], zero[1])
    kept = ~zero
    assert torch.allclose(dropped[kept], raw[kept] / 0.6)
    model.eval()
    assert torch.equal(
        model(torch.arange(5)[None], model.initial_state(1))[1],
        model(torch.arange(5)[None], model.initial_state(1))[2],
    )


def test_whole_words_and_recurrent_weights_are_dropped() -> None:
    """What is dropped has no gradient."""
    paper = configuration(["task=lstm", "scale=paper"]).task
    sizes = {"layers": 1, "embedding": 8, "hidden": 64, "tied": False}
    torch.manual_seed(0)
    words = LanguageModel(Options(**paper | sizes | {"drop_words": 0.3, "drop_input": 0.0}), 500).train()
    gradient = torch.autograd.grad(
        words(torch.arange(500).reshape(20, 25), words.initial_state(20))[0].sum(), words.embedding.weight
    )[0]
    assert torch.equal((gradient == 0).all(1), (gradient == 0).any(1))
    assert 0.23 < (gradient == 0).all(1).float().mean() < 0.37
    layer = LanguageModel(Options(**paper | sizes), 500).train().layers[0]
    assert isinstance(layer, Layer)
    x, state = torch.randn(2, 30, 8), (torch.zeros(1, 2, 64), torch.zeros(1, 2, 64))
    gradient = torch.autograd.grad(layer(x, state)[0].sum(), layer.weight_hidden)[0]
    assert 0.45 < (gradient == 0).float().mean() < 0.55


def test_nats_per_character_make_characters_and_words_comparable(tmp_path: Path) -> None:
    """A word costs as many nats as its perplexity says, for its letters and the blank after it."""
    (tmp_path / "text.txt").write_text("".join(f"the {i % 7} dogs bark\n" for i in range(4000)))
    for level, per_token in (("characters", 1.0), ("words", 16 / 5)):  # "the 3 dogs bark\n" and its <eos>
        task = make(tmp_path, f"task.corpus={tmp_path}/text.txt", f"task.level={level}")
        measured = task.evaluate()
        expected = math.log(measured["perplexity"]) / per_token
        assert measured["nats_per_character"] == pytest.approx(expected, rel=0.01), level
        assert task.units["perplexity"] == f"per {level.removesuffix('s')}"


def test_tied_weights_are_one_tensor_and_averaged_once(tmp_path: Path) -> None:
    task = make(tmp_path, "task.tied=true", "task.embedding=24")
    assert task.model.head.weight is task.model.embedding.weight
    averager = Averager(task.model, {"ema": {"kind": "ema", "decay": 0.9}})
    for step in range(3):
        task.train_step(task.batch(step), step)
        averager.update()
    with averager.applied("ema"):
        assert task.model.head.weight is task.model.embedding.weight
        assert task.evaluate()["perplexity"] > 0


def test_awd_lstm_on_the_penn_treebank_has_24_million_weights() -> None:
    config = configuration(["task=lstm", "scale=paper"])
    with torch.device("meta"):
        model = LanguageModel(Options(**config.task), 10_000)
    count = sum(p.numel() for p in model.parameters())
    # 10000 × 400 embedded (and output: tied), 400 → 1150 → 1150 → 400, biases as torch and cuDNN have them
    lstm = sum(4 * (i * o + o * o + 2 * o) for i, o in ((400, 1150), (1150, 1150), (1150, 400)))
    assert count == 10_000 * 400 + lstm + 10_000 == 24_221_600
    assert (config.optimizer.lr, config.clip.max_norm, config.batch_size) == (30.0, 0.25, 20)


def test_nt_asgd_is_the_mean_since_validation_stopped_improving(tmp_path: Path) -> None:
    """The trajectory is that of the plain run; the mean and its start are worked out here from it."""
    words = ("steps=40", "task.nonmono=2", "task.validate_every=3", "optimizer.lr=60", "clip.max_norm=1")
    plain, averaged = make(tmp_path, *words), make(tmp_path, *words, "task.nt_asgd=true")
    validations: list[float] = []
    since, weights = None, []
    for step in range(40):
        plain.train_step(plain.batch(step), step)
        averaged.train_step(averaged.batch(step), step)
        assert all(
            torch.equal(a, b)
            for a, b in zip(plain.model.parameters(), averaged.model.parameters(), strict=True)
        )
        if since is not None:
            weights.append([p.detach().clone().double() for p in plain.model.parameters()])
        elif (step + 1) % 3 == 0:
            plain.model.eval()
            with torch.no_grad():
                loss = math.log(plain.evaluate()["perplexity"])
            if len(validations) > 2 and loss > min(validations[:-2]):
                since = step + 1
            validations.append(loss)
    assert since is not None and len(weights) > 5
    assert averaged.references()["nt_asgd_since"] == since
    for index, mean in enumerate(averaged.averaged().parameters()):
        assert torch.allclose(mean.double(), sum(w[index] for w in weights) / len(weights), atol=1e-5)  # type: ignore[arg-type]


def test_nt_asgd_stops_and_goes_on(tmp_path: Path) -> None:
    words = (
        "task.nonmono=1",
        "task.validate_every=2",
        "task.nt_asgd=true",
        "optimizer.lr=60",
        "clip.max_norm=1",
    )
    whole, first = make(tmp_path, *words), make(tmp_path, *words)
    for step in range(20):
        whole.train_step(whole.batch(step), step)
    for step in range(11):
        first.train_step(first.batch(step), step)
    second = make(tmp_path, *words, "seed=0")
    second.load_state_dict(first.state_dict())
    for step in range(11, 20):
        second.train_step(second.batch(step), step)
    assert whole.nt_asgd_start == second.nt_asgd_start is not None
    for a, b in zip(whole.averaged().parameters(), second.averaged().parameters(), strict=True):
        assert torch.equal(a, b)


def test_activations_and_their_changes_are_penalised(tmp_path: Path) -> None:
    """AR and TAR, from the outputs of one chunk by hand; what is logged is the cross-entropy alone."""
    off = make(tmp_path, "optimizer.lr=1e-30", "clip.max_norm=1e9")
    ids = off.train.windows(off.stream_starts, off.options.bptt + 1)
    logits, dropped, raw, _ = off.model(ids[:, :-1], off.model.initial_state(off.context.batch_size))
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    penalised = loss + 2 * (dropped**2).mean() + 3 * ((raw[:, 1:] - raw[:, :-1]) ** 2).mean()
    for total, words in ((loss, ()), (penalised, ("task.ar=2.0", "task.tar=3.0"))):
        gradients = torch.autograd.grad(total, [*off.model.parameters()], retain_graph=True)
        expected = float(sum(g.square().sum() for g in gradients) ** 0.5)
        task = make(tmp_path, "optimizer.lr=1e-30", "clip.max_norm=1e9", *words)
        scalars = task.train_step(task.batch(0), 0)
        assert float(scalars["grad_norm"]) == pytest.approx(expected, rel=1e-5)
        assert float(scalars["loss"]) == pytest.approx(float(loss.detach()), rel=1e-6)


def test_clipping_reports_the_norm_and_changes_the_step(tmp_path: Path) -> None:
    clipped, free = make(tmp_path, "clip.max_norm=0.01"), make(tmp_path, "clip.max_norm=null")
    assert float(clipped.train_step(clipped.batch(0), 0)["grad_norm"]) > 0.01  # before clipping
    assert "grad_norm" not in free.train_step(free.batch(0), 0)
    before = make(tmp_path)
    moved = [
        float(
            sum(
                (a - b).square().sum()
                for a, b in zip(t.model.parameters(), before.model.parameters(), strict=True)
            )
            ** 0.5
        )
        for t in (clipped, free)
    ]
    assert moved[0] == pytest.approx(0.01, rel=1e-3)  # at rate 1
    assert moved[1] > moved[0]


def test_an_unclipped_run_that_explodes_is_diverged(tmp_path: Path) -> None:
    words = ["task=lstm", "scale=smoke", f"results_dir={tmp_path}", "device=cpu", "log=none"]
    result = run(configuration([*words, "optimizer.lr=1e38", "clip.max_norm=null"]))
    assert result.status == "diverged"
    assert run(configuration(words)).status == "finished"
    # A loss that stays finite, in weights that no perplexity is measured with.
    lost = run(configuration([*words, "optimizer.lr=1e30", "clip.max_norm=null"]))
    assert lost.status == "diverged"
    assert lost.reason is not None and lost.reason.startswith("perplexity of the raw weights")


def test_too_little_text(tmp_path: Path) -> None:
    corpus = tmp_path / "short.txt"
    corpus.write_text("short " * 20)
    with pytest.raises(UserError, match=r"^task.corpus=.*characters to valid are too few.*give more text"):
        make(tmp_path, f"task.corpus={corpus}")
    with pytest.raises(UserError, match=r"^task.corpus=topics: .*to train are too few.*smaller batch_size"):
        make(tmp_path, "batch_size=100000")
