"""A language model of LSTM layers: clipping, and averages of its weights (§17.1 of the article).

Small: characters of the text that every Python carries. Paper: AWD-LSTM on the Penn Treebank (Merity et al. 2017,
“Regularizing and optimizing LSTM language models”; salesforce/awd-lstm-lm), with NT-ASGD as an option.

The text is cut into `batch_size` streams side by side, and training goes along them in chunks of `bptt` tokens.
Which chunk a step takes is a function of (seed, step); the hidden state that one chunk leaves to the next depends
on all weights before it, so it is part of the training state.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from emabench.config import Count, NonNegative, Section
from emabench.data.text import open_corpus
from emabench.data.text_tokens import Characters, Stream, Words, tokenised
from emabench.errors import UserError
from emabench.tasks import base
from emabench.tasks.base import Direction

Dropout = Annotated[float, Field(ge=0, lt=1)]
State = list[tuple[Tensor, Tensor]]  # of each layer: h and c, [1, streams, width]


class Options(Section):
    """The model, the text and how training goes along it."""

    name: Literal["lstm"]
    corpus: str  # topics, python, a text file, a folder (ptb.train.txt …), hub:<data set>
    level: Literal["characters", "words"]
    layers: Count
    embedding: Count
    hidden: Count
    tied: bool  # one matrix for the embedding and the output; the last layer is then as wide as the embedding
    bptt: Annotated[int, Field(ge=5)]  # tokens of a chunk
    random_bptt: bool  # lengths vary about bptt, so that chunks do not always end at the same tokens
    drop_words: Dropout  # whole words from the embedding, for a chunk
    drop_input: Dropout  # of the embedded text, one mask for all tokens of a chunk
    drop_hidden: Dropout  # between layers, likewise
    drop_output: Dropout  # of the last layer, likewise
    drop_weights: Dropout  # of the hidden-to-hidden matrices
    ar: NonNegative  # AR: penalty on the mean square of the outputs (after dropout)
    tar: NonNegative  # TAR: penalty on the mean square of their change from token to token
    evaluation_streams: Count  # validation and test text is read in so many streams side by side
    nt_asgd: bool  # the weights that are measured are their mean since validation stopped improving
    nonmono: Count  # nt_asgd: begins when validation is worse than the best before the last so many
    validate_every: Count  # nt_asgd: steps between validations


class Layer(nn.Module):
    """One LSTM layer whose hidden-to-hidden matrix can be dropped out; weights are drawn as in `nn.LSTM`."""

    def __init__(self, inputs: int, width: int, drop_weights: float) -> None:
        super().__init__()
        self.width, self.drop_weights = width, drop_weights
        bound = width**-0.5
        self.weight_input = nn.Parameter(torch.empty(4 * width, inputs).uniform_(-bound, bound))
        self.weight_hidden = nn.Parameter(torch.empty(4 * width, width).uniform_(-bound, bound))
        self.bias_input = nn.Parameter(torch.empty(4 * width).uniform_(-bound, bound))
        self.bias_hidden = nn.Parameter(torch.empty(4 * width).uniform_(-bound, bound))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [streams, tokens, inputs] → outputs [streams, tokens, width] and the state after the last token."""
        hidden = F.dropout(self.weight_hidden, self.drop_weights, self.training)
        weights = [self.weight_input, hidden, self.bias_input, self.bias_hidden]
        outputs, h, c = torch.lstm(x, state, weights, True, 1, 0.0, self.training, False, True)
        return outputs, (h.detach().float(), c.detach().float())


class LanguageModel(nn.Module):
    """Embedding, LSTM layers and a linear output, with the dropouts of AWD-LSTM."""

    def __init__(self, options: Options, vocabulary: int) -> None:
        super().__init__()
        self.options = options
        last = options.embedding if options.tied else options.hidden
        widths = [options.embedding, *[options.hidden] * (options.layers - 1), last]
        self.embedding = nn.Embedding(vocabulary, options.embedding)
        self.layers = nn.ModuleList(Layer(i, o, options.drop_weights) for i, o in pairwise(widths))
        self.head = nn.Linear(last, vocabulary)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.head.weight, -0.1, 0.1)
        nn.init.zeros_(self.head.bias)
        if options.tied:
            self.head.weight = self.embedding.weight
        self.widths = widths[1:]

    def initial_state(self, streams: int) -> State:
        """The hidden state before any text."""
        zeros = [torch.zeros(1, streams, width, device=self.head.bias.device) for width in self.widths]
        return [(z, z) for z in zeros]

    def forward(self, ids: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor, State]:
        """ids [streams, tokens] → logits [streams, tokens, vocabulary], the last layer's output with and without
        dropout [streams, tokens, width], and the hidden state after the last token (float32, detached)."""
        options = self.options
        words = _dropout(
            self.embedding.weight, options.drop_words, (len(self.embedding.weight), 1), self.training
        )
        x = _locked_dropout(F.embedding(ids, words), options.drop_input, self.training)
        raw, next_state = x, []
        for index, layer in enumerate(self.layers):
            raw, layer_state = layer(x, state[index])
            next_state.append(layer_state)
            last = index == options.layers - 1
            x = _locked_dropout(raw, options.drop_output if last else options.drop_hidden, self.training)
        return self.head(x), x, raw, next_state


def _dropout(x: Tensor, p: float, shape: tuple[int, ...], training: bool) -> Tensor:
    """Dropout with one mask of `shape` for all that it is broadcast over."""
    if not (training and p):
        return x
    return x * F.dropout(torch.ones(shape, device=x.device, dtype=x.dtype), p)


def _locked_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Dropout of x [streams, tokens, width] with the same mask at every token."""
    return _dropout(x, p, (x.shape[0], 1, x.shape[2]), training)


class Chunks:
    """Where along the streams each step's chunk lies: a function of (seed, step)."""

    SHORTEST = 5  # tokens; what is left over at the end of an epoch and is shorter is left out

    def __init__(self, length: int, options: Options, context: base.Context) -> None:
        self.length, self.options, self.context = length, options, context
        self._begin(0, 0)

    def _begin(self, epoch: int, step: int) -> None:
        """Lay out an epoch that begins with this step."""
        self.number, self.first = epoch, step
        self.chunks: list[tuple[int, int]] = []
        lengths = self._lengths(epoch)
        at = index = 0
        while self.length - at >= self.SHORTEST:
            take = min(lengths[index], self.length - at)
            self.chunks.append((at, take))
            at, index = at + take, index + 1

    def _lengths(self, epoch: int) -> list[int]:
        """More than enough lengths for an epoch."""
        bptt, count = self.options.bptt, self.length // self.SHORTEST + 1
        if not self.options.random_bptt:
            return [bptt] * count
        # Merity et al. §3.1: mean bptt, at one in twenty half of it, standard deviation 5.
        generator = self.context.generator("bptt", epoch)
        mean = torch.where(torch.rand(count, generator=generator) < 0.95, bptt, bptt / 2)
        return [max(self.SHORTEST, int(x)) for x in torch.normal(mean, 5.0, generator=generator)]

    def at(self, step: int) -> tuple[int, int]:
        """(first token, number of tokens) of a step's chunk; first token 0 means that an epoch begins."""
        if step < self.first:
            self._begin(0, 0)
        while step >= self.first + len(self.chunks):
            self._begin(self.number + 1, self.first + len(self.chunks))
        return self.chunks[step - self.first]


class Task(base.Task):
    """An LSTM language model."""

    metrics: ClassVar[Mapping[str, Direction]] = {
        "perplexity": Direction.LOWER,  # of the validation text, per token
        "test_perplexity": Direction.LOWER,
        "nats_per_character": Direction.LOWER,  # of the validation text: comparable between characters and words
    }

    def __init__(self, options: Options, context: base.Context) -> None:
        self.options, self.context = options, context
        corpus = open_corpus(options.corpus, context.data_dir)
        vocabulary = Characters() if options.level == "characters" else Words()
        self.text = tokenised(corpus, vocabulary, context.cache_dir, context.progress)
        least = max(2, Chunks.SHORTEST + 1) * context.batch_size
        for split, ids, needed in (
            ("train", self.text.train, least),
            ("valid", self.text.valid, options.evaluation_streams + 1),
            ("test", self.text.test, options.evaluation_streams + 1),
        ):
            if len(ids) < needed:
                raise UserError(
                    f"task.corpus={options.corpus}: {len(ids)} {options.level} to {split} are too few, {needed} are "
                    "needed; give more text, or a smaller batch_size and task.evaluation_streams"
                )
        self.train = Stream(self.text.train, context.device)
        self.held_out = {
            "perplexity": Stream(self.text.valid, context.device),
            "test_perplexity": Stream(self.text.test, context.device),
        }
        counts = self.text.characters()[torch.from_numpy(self.text.valid.astype("int64"))]
        self.characters_per_token = float(counts.double().mean())  # of the validation text
        self.stream_length = (
            self.train.length - 1
        ) // context.batch_size  # tokens of a stream that are predicted
        self.stream_starts = (
            context.shard(torch.arange(context.batch_size)) * self.stream_length
        )  # of this process's streams
        self.chunks = Chunks(self.stream_length, options, context)
        self.model = LanguageModel(options, self.text.size).to(context.device)
        self.trained = context.parallel(self.model)
        self.optimizer = context.optimizer(self.model.parameters())
        self.hidden = self.model.initial_state(len(self.stream_starts))
        # NT-ASGD: `mean` is the weights themselves until `since`, from then on the mean of those after each step.
        self.mean_model = copy.deepcopy(self.model) if options.nt_asgd else self.model
        self.validations: list[float] = []
        self.nt_asgd_start: int | None = None

    @property
    def measured_with(self) -> Mapping[str, str]:
        return dict.fromkeys(self.metrics, f"{self.text.label}, {self.options.evaluation_streams} streams")

    @property
    def units(self) -> Mapping[str, str]:
        per_token = f"per {self.text.token}"
        return {"perplexity": per_token, "test_perplexity": per_token, "nats_per_character": "nats"}

    def averaged(self) -> nn.Module:
        return self.mean_model

    def compiled(self) -> Sequence[nn.Module]:
        return [self.model, *([self.mean_model] if self.options.nt_asgd else [])]

    def batch(self, step: int) -> Tensor:
        """The next chunk of every stream and the token after it: ids [streams, tokens + 1]."""
        start, length = self.chunks.at(step)
        return self.train.windows(self.stream_starts + start, length + 1)

    def train_step(self, batch: Tensor, step: int) -> Mapping[str, Tensor | float]:
        options, ids = self.options, batch
        start, length = self.chunks.at(step)
        if start == 0:
            self.hidden = self.model.initial_state(len(self.stream_starts))
        self.model.train()
        logits, dropped, raw, self.hidden = self.trained(ids[:, :-1], self.hidden)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        penalty = options.ar * dropped.float().square().mean()
        penalty = penalty + options.tar * (raw[:, 1:] - raw[:, :-1]).float().square().mean()
        # A short chunk counts for less. AWD-LSTM scales the rate instead: the same where nothing is clipped; where the
        # norm is, a short chunk's step is as long as another's here.
        norm = self.optimizer.step((loss + penalty) * (length / options.bptt), step)
        if options.nt_asgd:
            self._update_nt_asgd(step + 1)
        return {"loss": loss.detach()} | ({} if norm is None else {"grad_norm": norm})

    @torch.no_grad()
    def _update_nt_asgd(self, done: int) -> None:
        """NT-ASGD (Merity et al., algorithm 1): decide after `done` steps whether the mean begins, and update it."""
        count = 1 if self.nt_asgd_start is None else done - self.nt_asgd_start
        for mean, weight in zip(self.mean_model.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(weight, 1.0 / count)
        if self.nt_asgd_start is not None or done % self.options.validate_every:
            return
        self.model.eval()
        loss = self._loss(self.model, self.held_out["perplexity"])
        self.model.train()
        before = self.validations[: -self.options.nonmono]
        if before and loss > min(before):
            self.nt_asgd_start = done
            self.context.progress(f"nt_asgd: the mean of the weights begins after step {done}")
        self.validations.append(loss)

    def _loss(self, model: nn.Module, text: Stream) -> float:
        """Mean negative log-likelihood of a text, nats per token; each stream is read from end to end."""
        streams, chunk = self.options.evaluation_streams, self.options.bptt
        length = (text.length - 1) // streams
        starts = torch.arange(streams) * length
        hidden = self.model.initial_state(streams)
        total = torch.zeros((), dtype=torch.float64, device=self.context.device)
        for start in range(0, length, chunk):
            ids = text.windows(starts + start, min(chunk, length - start) + 1)
            logits, _, _, hidden = model(ids[:, :-1], hidden)
            total += F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum")
        return float(total.detach()) / (streams * length)

    def evaluate(self) -> Mapping[str, float]:
        losses = {name: self._loss(self.mean_model, text) for name, text in self.held_out.items()}
        per_character = losses["perplexity"] / self.characters_per_token
        return {name: _exp(loss) for name, loss in losses.items()} | {"nats_per_character": per_character}

    def references(self) -> Mapping[str, float]:
        """What a model scores that knows how frequent each token is and nothing else; when NT-ASGD began."""
        counts = torch.bincount(torch.from_numpy(self.text.train.astype("int64")), minlength=self.text.size)
        log_share = ((counts + 1.0) / (counts + 1.0).sum()).double().log()
        held = torch.from_numpy(self.text.valid.astype("int64"))
        result = {"unigram_perplexity": _exp(-float(log_share[held].mean()))}
        return result | ({} if self.nt_asgd_start is None else {"nt_asgd_since": float(self.nt_asgd_start)})

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "hidden": [tuple(self.context.all_gather(s, 1) for s in layer) for layer in self.hidden],
        }
        if self.options.nt_asgd:
            state |= {
                "mean": self.mean_model.state_dict(),
                "validations": self.validations,
                "since": self.nt_asgd_start,
            }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        context = self.context
        self.hidden = [
            (context.shard(h, 1).to(context.device), context.shard(c, 1).to(context.device))
            for h, c in state["hidden"]
        ]
        if self.options.nt_asgd:
            self.mean_model.load_state_dict(state["mean"])
            self.validations, self.nt_asgd_start = list(state["validations"]), state["since"]


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
