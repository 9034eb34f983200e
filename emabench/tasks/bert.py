"""BERT: masked tokens and next sentences (§8.2 of the article), with and without LayerNorm (§17.2).

Small: two layers on the text that every Python carries. Paper: BERT-base on Wikipedia and books, fine-tuned on
GLUE (Devlin et al. 2019). Batches and masks are functions of (seed, step); the masks of validation are fixed.

For §17.2 a fixed random subset of the weights, and the EMAs of it, is written down over the last steps of the run.
From that come the variance of the weights about their trend, how much an average reduces it, and what the reduction
would be if the weights were AR(1) processes with the autocorrelation that they show:

    Var(ema) / Var(θ) = (1 − β)/(1 + β) · (1 + βρ)/(1 − βρ).

ρ is taken from the autocorrelation at a lag beyond the optimiser's own memory, ρ = r_lag^(1/lag): momentum makes
weights smoother from one step to the next than they are over ten. Windows that are no small part of the steps that
are written down look better than they are: what is slower than those steps is taken for the trend.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForPreTraining

from emabench.config import Count, Fraction, Positive, Section
from emabench.data.text import load_hub, open_corpus
from emabench.data.text_tokens import GivenTokenizer, Stream, Subwords, Vocabulary, tokenised
from emabench.errors import UserError
from emabench.seeding import generator
from emabench.tasks import base
from emabench.tasks.base import Direction

COUNTED = 1 << 24  # tokens of a text that are counted at a time: BERT's is larger than memory

# By GLUE task: the columns of its one or two sentences, and the split that accuracy is measured on.
GLUE = {
    "mnli": (("premise", "hypothesis"), "validation_matched"),
    "mrpc": (("sentence1", "sentence2"), "validation"),
    "qnli": (("question", "sentence"), "validation"),
    "qqp": (("question1", "question2"), "validation"),
    "rte": (("sentence1", "sentence2"), "validation"),
    "sst2": (("sentence",), "validation"),
}
Decay = Annotated[float, Field(ge=0, lt=1)]


class FineTune(Section):
    """The classification that the weights are fine-tuned for: at the end of the run, on a copy of them.

    `exchanged`: is a window as it was written, or are some of its tokens exchanged? The others are GLUE's.
    """

    task: Literal["exchanged", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2"]
    test: Annotated[
        int, Field(ge=2)
    ]  # exchanged: windows of the validation text that accuracy is measured on
    steps: Count
    batch_size: Count
    lr: Positive  # of AdamW; a tenth of the steps warm up, then it falls linearly to 0
    restarts: Count  # accuracies of so many fine-tunings are averaged


class Variance(Section):
    """What of the weights is written down along the run."""

    weights: Count  # how many of them
    steps: Annotated[int, Field(ge=8)]  # over so many steps at the end of the run
    lag: Count  # steps between the weights that ρ is measured from
    decays: float | list[float]  # of the averages whose variance is compared: those of the run


class Options(Section):
    """The model, the text and what is measured."""

    name: Literal["bert"]
    corpus: str  # topics, python, a text file, a folder, hub:<data set>[+<data set>]
    tokenizer: str | None  # a tokenizer.json or a name on the Hugging Face hub; null: trained on the corpus
    vocabulary: Annotated[int, Field(ge=300)]  # of a tokenizer that is trained here
    layers: Count
    hidden: Count
    heads: Count
    intermediate: Count
    length: Annotated[int, Field(ge=8)]  # tokens of a sequence
    dropout: Annotated[float, Field(ge=0, lt=1)]
    layer_norm: bool
    initial_sd: Positive  # of the weights drawn at the start
    masked: Fraction  # share of the tokens that are to be predicted
    validation_sequences: Count
    finetune: FineTune
    variance: Variance


@dataclass(frozen=True)
class Batch:
    """Sequences of two segments, [CLS] a … [SEP] b … [SEP], with tokens masked. All on the device."""

    ids: Tensor  # [n, length]
    segments: Tensor  # [n, length], 0 or 1
    places: Tensor  # [n, masked tokens], where the masked tokens are
    tokens: Tensor  # [n, masked tokens], what they were
    follows: (
        Tensor  # [n], 1 where the second segment follows the first in the text, 0 where it is from anywhere
    )

    def share(self, context: base.Context) -> Batch:
        """This process's part; every sequence has as many masked tokens, so means over parts weigh the same."""
        parts = (self.ids, self.segments, self.places, self.tokens, self.follows)
        return Batch(*map(context.share, parts))


class Sequences:
    """Draws batches from a stream of tokens. Documents end in [SEP]; a segment may go over such an end."""

    def __init__(self, stream: Stream, special: Mapping[str, int], size: int, options: Options) -> None:
        self.stream, self.special, self.size, self.options = stream, special, size, options
        self.tokens = options.length - 3  # of the text, in a sequence
        self.masked = max(1, round(options.masked * self.tokens))

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """`count` sequences from anywhere in the stream."""
        starts = torch.randint(self.stream.length - self.tokens + 1, (count,), generator=generator)
        return self.at(starts, generator)

    def at(self, starts: Tensor, generator: torch.Generator) -> Batch:
        """Sequences whose first segments begin at these tokens of the stream."""
        count, length = len(starts), self.options.length
        last = self.stream.length - self.tokens
        quarter = self.tokens // 4
        first = torch.randint(quarter, self.tokens - quarter + 1, (count, 1), generator=generator)
        follows = torch.rand(count, generator=generator) < 0.5
        anywhere = torch.randint(last + 1, (count,), generator=generator)
        second = torch.where(follows, starts + first[:, 0], anywhere)
        j = torch.arange(length)
        in_first = j <= first  # with [CLS]; the second segment begins after [SEP] at first + 1
        at = torch.where(in_first, starts[:, None] + j - 1, second[:, None] + j - first - 2)
        ids = self.stream.take(at.clamp(0, self.stream.length - 1))
        ends = (j == first + 1) | (j == length - 1)
        framing = (ends | (j == 0)).to(ids.device)
        ids[:, 0] = self.special["[CLS]"]
        ids.masked_fill_(ends.to(ids.device), self.special["[SEP]"])
        segments = (j > first + 1).long().to(ids.device)
        ids, places, tokens = self._mask(ids, framing, generator)
        return Batch(ids, segments, places, tokens, follows.long().to(ids.device))

    def _mask(
        self, ids: Tensor, framing: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Choose the tokens to predict: 80 % become [MASK], 10 % any token, 10 % stay (Devlin et al., §3.1)."""
        score = torch.rand(ids.shape, generator=generator).to(ids.device).masked_fill_(framing, -1.0)
        places = score.topk(self.masked, 1).indices
        tokens = ids.gather(1, places)
        fate = torch.rand(places.shape, generator=generator).to(ids.device)
        other = torch.randint(self.size, places.shape, generator=generator).to(ids.device)
        shown = torch.where(fate < 0.9, other, tokens).masked_fill_(fate < 0.8, self.special["[MASK]"])
        return ids.scatter(1, places, shown), places, tokens


class Model(nn.Module):
    """`BertForPreTraining`, with the prediction head run on the masked tokens alone."""

    def __init__(self, options: Options, vocabulary: int, padding: int) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=vocabulary,
            hidden_size=options.hidden,
            num_hidden_layers=options.layers,
            num_attention_heads=options.heads,
            intermediate_size=options.intermediate,
            max_position_embeddings=options.length,
            hidden_dropout_prob=options.dropout,
            attention_probs_dropout_prob=options.dropout,
            initializer_range=options.initial_sd,
            pad_token_id=padding,
        )
        self.bert = BertForPreTraining(config)
        if not options.layer_norm:
            _without_layer_norm(self.bert)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores of the masked tokens [n, masked, vocabulary], and of following or not [n, 2]."""
        hidden, pooled = self.bert.bert(batch.ids, token_type_ids=batch.segments, return_dict=False)[:2]
        masked = hidden.gather(1, batch.places[..., None].expand(-1, -1, hidden.shape[-1]))
        return self.bert.cls.predictions(masked), self.bert.cls.seq_relationship(pooled)


def _without_layer_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.LayerNorm):
            setattr(module, name, nn.Identity())
        else:
            _without_layer_norm(child)


class Task(base.Task):
    """BERT pre-training."""

    metrics: ClassVar[Mapping[str, Direction]] = {
        "perplexity": Direction.LOWER,  # of the masked tokens of the validation text
        "finetune_accuracy": Direction.HIGHER,  # per cent
        "variance_reduction": Direction.HIGHER,  # variance of the raw weights over that of these, about their trends
        "ar1_reduction": Direction.HIGHER,  # what it would be if the weights were AR(1) processes with their ρ
        "relative_variance": Direction.LOWER,  # of these weights about their trend, over their mean square
    }
    parallel: ClassVar[frozenset[str]] = frozenset({"ddp"})  # the trace reads the weights

    @classmethod
    def check(cls, options: Options, batch_size: int) -> None:
        if options.hidden % options.heads:
            raise UserError(f"task.heads={options.heads}: does not divide task.hidden={options.hidden}")

    def __init__(self, options: Options, context: base.Context) -> None:
        self.options, self.context = options, context
        self.check(options, context.batch_size)
        vocabulary: Vocabulary = (
            GivenTokenizer(options.tokenizer) if options.tokenizer else Subwords(options.vocabulary)
        )
        corpus = open_corpus(options.corpus, context.data_dir)
        self.text = tokenised(corpus, vocabulary, context.cache_dir, context.progress)
        for split, ids in (("train", self.text.train), ("valid", self.text.valid)):
            if len(ids) < 2 * options.length:
                raise UserError(
                    f"task.corpus={options.corpus}: {len(ids)} tokens to {split} are too few for sequences of "
                    f"{options.length}; give more text, or a smaller task.length"
                )
        self.special = _special_ids(self.text.folder)
        self.train = self._sequences(Stream(self.text.train, context.device))
        self.validation = self._fixed(self._sequences(Stream(self.text.valid, context.device)))
        self.labelled = self._labelled()
        self.model = Model(options, self.text.size, self.special["[PAD]"]).to(context.device)
        self.trained = context.parallel(self.model)
        # BERT's own optimiser lets biases and LayerNorm not decay.
        matrices: dict[str, Any] = {"params": [p for p in self.model.parameters() if p.ndim > 1]}
        rest: dict[str, Any] = {
            "params": [p for p in self.model.parameters() if p.ndim < 2],
            "weight_decay": 0.0,
        }
        self.optimizer = context.optimizer([matrices, rest])
        self.trace = Trace(self.model, options.variance, context)
        self.done = 0  # steps

    def _sequences(self, stream: Stream) -> Sequences:
        return Sequences(stream, self.special, self.text.size, self.options)

    def _fixed(self, sequences: Sequences) -> list[Batch]:
        """The same sequences and masks for every set of weights and every seed, spread evenly over the text."""
        count = self.options.validation_sequences
        starts = torch.linspace(0, sequences.stream.length - sequences.tokens, count).long()
        return [
            sequences.at(part, generator(0, "validation", index))
            for index, part in enumerate(starts.split(self.context.batch_size))
        ]

    def _labelled(self) -> tuple[Examples, Examples]:
        finetune, length = self.options.finetune, self.options.length
        if finetune.task == "exchanged":
            draws = generator(0, "exchanged")  # the same examples for every seed
            valid = Stream(self.text.valid, self.context.device)
            train_count = finetune.steps * finetune.batch_size
            train = exchanged(self.train.stream, train_count, self.special, length, draws)
            return train, exchanged(valid, finetune.test, self.special, length, draws)
        return glue(finetune.task, self.text.folder, length, self.special["[PAD]"], self.context.device)

    @property
    def measured_with(self) -> Mapping[str, str]:
        o, f = self.options, self.options.finetune
        task = f"{f.test} windows" if f.task == "exchanged" else f"{f.task}, development set"
        traced = f"{len(self.trace.at)} weights over the last {self.trace.steps} steps"
        return {
            "perplexity": f"{self.text.label}, {o.validation_sequences} × {o.length} tokens, {o.masked:.0%} masked",
            "finetune_accuracy": f"{task}, mean of {f.restarts}",
            "variance_reduction": traced,
            "ar1_reduction": traced,
            "relative_variance": traced,
        }

    def averaged(self) -> nn.Module:
        return self.model

    def train_step(self, step: int) -> Mapping[str, Tensor | float]:
        batch = self.train.draw(self.context.batch_size, self.context.generator("batch", step))
        batch = batch.share(self.context)
        with self.context.autocast():
            tokens, follows = self.trained(batch)
        masked = F.cross_entropy(tokens.float().flatten(0, 1), batch.tokens.flatten())
        following = F.cross_entropy(follows.float(), batch.follows)
        norm = self.optimizer.step(masked + following, step)
        self.done = step + 1
        self.trace.add(self.done, masked.detach())
        scalars = {"loss": (masked + following).detach(), "loss_masked": masked.detach()}
        return scalars | ({} if norm is None else {"grad_norm": norm})

    # -- measuring ----------------------------------------------------------------------------------------------

    def evaluate(self) -> Mapping[str, float]:
        """All metrics at the end of the run; along the way the perplexity alone, for the others take minutes."""
        metrics = {"perplexity": self._perplexity()}
        if self.done < self.context.steps:
            return metrics
        return metrics | {"finetune_accuracy": self._finetuned()} | self.trace.of_weights_in_place()

    def _perplexity(self) -> float:
        total = torch.zeros((), dtype=torch.float64, device=self.context.device)
        for batch in self.validation:
            with self.context.autocast():
                tokens, _ = self.model(batch)
            total += F.cross_entropy(tokens.float().flatten(0, 1), batch.tokens.flatten(), reduction="sum")
        loss = float(total) / sum(batch.tokens.numel() for batch in self.validation)
        return math.exp(loss) if loss < 700 else math.inf

    def _finetuned(self) -> float:
        """Mean accuracy, in per cent, of copies of the weights in place that are fine-tuned."""
        train, test = self.labelled
        devices = [self.context.device] if self.context.device.type == "cuda" else []
        accuracies = []
        for restart in range(self.options.finetune.restarts):
            with torch.random.fork_rng(devices), torch.enable_grad():
                draws = self.context.generator("finetune", restart)
                torch.manual_seed(draws.initial_seed())
                classifier = Classifier(self.model.bert.bert, train.classes, self.options).to(
                    self.context.device
                )
                self._fit(classifier.train(), train, draws)
            classifier.eval()
            right = [
                (classifier(part.ids, part.segments, part.attended).argmax(1) == part.labels).sum()
                for part in test.batches(self.context.batch_size)
            ]
            accuracies.append(100.0 * int(torch.stack(right).sum()) / len(test.labels))
        return sum(accuracies) / len(accuracies)

    def _fit(self, classifier: Classifier, train: Examples, draws: torch.Generator) -> None:
        settings = self.options.finetune
        optimizer = torch.optim.AdamW(classifier.parameters(), settings.lr, weight_decay=0.01)
        warmup = max(1, settings.steps // 10)
        for step in range(settings.steps):
            rate = min((step + 1) / warmup, (settings.steps - step) / max(1, settings.steps - warmup))
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * rate
            chosen = torch.randint(len(train.labels), (settings.batch_size,), generator=draws)
            part = train.take(chosen.to(train.labels.device))
            with self.context.autocast():
                scores = classifier(part.ids, part.segments, part.attended)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(scores.float(), part.labels).backward()
            nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
            optimizer.step()

    def references(self) -> Mapping[str, float]:
        """Perplexity of token frequencies alone, accuracy of always the same answer, and what the trace shows."""
        text, size = self.text.train, self.text.size
        pieces = (text[at : at + COUNTED] for at in range(0, len(text), COUNTED))
        counts = torch.from_numpy(sum(np.bincount(piece, minlength=size) for piece in pieces))
        log_share = ((counts + 1.0) / (counts + 1.0).sum()).double().log()
        tokens = torch.cat([batch.tokens.flatten().cpu() for batch in self.validation])
        labels = self.labelled[1].labels
        return {
            "unigram_perplexity": math.exp(-float(log_share[tokens].mean())),
            "chance_accuracy": 100.0 * float(labels.bincount().max()) / len(labels),
        } | self.trace.findings()

    def export(self, directory: Path) -> None:
        """A folder that transformers' `from_pretrained` reads, and its tokenizer.json."""
        self.model.bert.save_pretrained(directory)
        (directory / "tokenizer.json").write_bytes((self.text.folder / "tokenizer.json").read_bytes())

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "trace": self.trace.state_dict(),
            "done": self.done,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.trace.load_state_dict(state["trace"])
        self.done = state["done"]


# -- fine-tuning ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Examples:
    """Labelled sequences, on the device."""

    ids: Tensor  # [n, length]
    segments: Tensor  # [n, length]
    attended: Tensor | None  # [n, length], False where padded; None where nothing is
    labels: Tensor  # [n]
    classes: int

    def take(self, chosen: Tensor) -> Examples:
        attended = None if self.attended is None else self.attended[chosen]
        return Examples(
            self.ids[chosen].long(), self.segments[chosen].long(), attended, self.labels[chosen], self.classes
        )

    def batches(self, size: int) -> Iterator[Examples]:
        for chosen in torch.arange(len(self.labels), device=self.labels.device).split(size):
            yield self.take(chosen)


class Classifier(nn.Module):
    """A copy of the encoder, with a new linear layer on its pooled output."""

    def __init__(self, encoder: nn.Module, classes: int, options: Options) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.drop = nn.Dropout(options.dropout)
        self.head = nn.Linear(options.hidden, classes)
        nn.init.normal_(self.head.weight, std=options.initial_sd)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, segments: Tensor, attended: Tensor | None) -> Tensor:
        """Scores [n, classes]."""
        pooled = self.encoder(ids, attention_mask=attended, token_type_ids=segments, return_dict=False)[1]
        return self.head(self.drop(pooled))


def exchanged(
    stream: Stream, count: int, special: Mapping[str, int], length: int, draws: torch.Generator
) -> Examples:
    """Windows of the text, and whether tokens of it were exchanged: in every other one, one token in three on
    average has another one from anywhere in the text in its place (each is as frequent as before)."""
    tokens = length - 2
    starts = torch.randint(stream.length - tokens + 1, (count,), generator=draws)
    elsewhere = torch.randint(stream.length, (count, tokens), generator=draws)
    labels = torch.arange(count) % 2
    away = (torch.rand(count, tokens, generator=draws) < 1 / 3) & (labels[:, None] == 1)
    at = torch.where(away, elsewhere, starts[:, None] + torch.arange(tokens))
    ids = torch.empty(count, length, dtype=torch.int64, device=stream.device)
    ids[:, 0], ids[:, -1] = special["[CLS]"], special["[SEP]"]
    ids[:, 1:-1] = stream.take(at)
    return Examples(ids, torch.zeros_like(ids), None, labels.to(stream.device), 2)


def glue(
    task: str, tokenizer: Path, length: int, padding: int, device: torch.device
) -> tuple[Examples, Examples]:
    """A task of GLUE: its training set, and the development set that accuracy is measured on."""
    from tokenizers import Tokenizer

    columns, held_out = GLUE[task]
    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    encoder.enable_truncation(length)
    encoder.enable_padding(pad_id=padding, length=length)
    loaded = load_hub("nyu-mll/glue", task, f"task.finetune.task={task}")

    def examples(split: str) -> Examples:
        rows = loaded[split]
        texts: Sequence[Any] = [*zip(*(list(rows[column]) for column in columns), strict=True)]
        encoded = encoder.encode_batch([text if len(text) > 1 else text[0] for text in texts])
        ids = torch.tensor([e.ids for e in encoded], dtype=torch.int32, device=device)
        segments = torch.tensor([e.type_ids for e in encoded], dtype=torch.int8, device=device)
        attended = torch.tensor([e.attention_mask for e in encoded], dtype=torch.bool, device=device)
        labels = torch.tensor(list(rows["label"]), device=device)
        return Examples(ids, segments, attended, labels, int(labels.max()) + 1)

    return examples("train"), examples(held_out)


def _special_ids(folder: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    return {token: vocabulary[token] for token in ("[PAD]", "[CLS]", "[SEP]", "[MASK]")}


# -- the variance of the weights along the run ----------------------------------------------------------------


class Trace:
    """A fixed random subset of the weights, its EMAs and the loss, written down over the last steps of a run.

    The EMAs are those of the run without their ramps and gaps: from zero, debiased, one update a step.
    """

    def __init__(self, model: nn.Module, options: Variance, context: base.Context) -> None:
        self.parameters = [*model.parameters()]
        decays = options.decays if isinstance(options.decays, list) else [options.decays]
        self.steps = min(options.steps, context.steps)
        self.mean = context.mean
        self.first = context.steps - self.steps  # steps done before the first that is written down
        total = sum(p.numel() for p in self.parameters)
        drawn = torch.randperm(total, generator=context.generator("trace"))[: options.weights]
        self.at, self.parts = drawn.sort().values, []
        begin = 0
        for p in self.parameters:
            inside = self.at[(self.at >= begin) & (self.at < begin + p.numel())] - begin
            self.parts.append(inside.to(p.device))
            begin += p.numel()
        device = context.device
        self.decays = torch.tensor(decays, dtype=torch.float64)
        self.lag = min(options.lag, self.steps // 4)
        self.sums = torch.zeros(len(decays), len(self.at), device=device)  # of the EMAs from zero
        self.weights = torch.zeros(
            self.steps, 1 + len(decays), len(self.at), device=device
        )  # raw, then the EMAs
        self.losses = torch.zeros(self.steps, device=device)

    def _now(self) -> Tensor:
        """The subset of the weights in place."""
        return torch.cat(
            [p.detach().flatten()[at] for p, at in zip(self.parameters, self.parts, strict=True)]
        )

    def add(self, done: int, loss: Tensor) -> None:
        """The weights after `done` steps, and the loss of the last one."""
        now = self._now()
        fresh = (1 - self.decays).to(self.sums)
        self.sums.lerp_(now.expand_as(self.sums), fresh[:, None].expand_as(self.sums))
        if done > self.first:
            row = done - 1 - self.first
            self.weights[row, 0] = now
            self.weights[row, 1:] = self.sums / (1 - self.decays**done).to(self.sums)[:, None]
            self.losses[row] = self.mean(loss)

    def _variances(self) -> Tensor:
        """Variance about the linear trend, summed over the weights, of the raw ones and each EMA: float64 [1 + decays]."""
        return detrended(self.weights).square().sum((0, 2)) / (self.steps - 2)

    def _rho(self, lag: int) -> float:
        """The raw weights' autocorrelation from step to step, as that over `lag` steps says it."""
        raw = detrended(self.weights[:, 0])
        before, after = raw[:-lag], raw[lag:]
        r = (before * after).sum() / (before.square().sum() * after.square().sum()).sqrt()
        return float(r.clamp_min(0.0)) ** (1 / lag)

    def of_weights_in_place(self) -> dict[str, float]:
        """What of the traced weights is known to be in place: the raw ones, or one of their EMAs.

        They are told by their values, to a tenth of what the raw weights vary by; NaN for any other average.
        """
        total = self._variances()
        away = (self.weights[-1].double() - self._now().double()).square().sum(1)
        nearest = int(away.argmin())
        if not away[nearest] <= 0.01 * total[0]:
            return dict.fromkeys(("variance_reduction", "ar1_reduction", "relative_variance"), math.nan)
        beta = float(self.decays[nearest - 1]) if nearest else 0.0
        rho = self._rho(self.lag)
        law = (1 - beta) / (1 + beta) * (1 + beta * rho) / (1 - beta * rho)
        size = self.weights[:, nearest].double().mean(0).square().sum()
        return {
            "variance_reduction": float(total[0] / total[nearest]),
            "ar1_reduction": 1 / law,
            "relative_variance": float(total[nearest] / size),
        }

    def findings(self) -> dict[str, float]:
        """ρ of the raw weights from lags of one step and of `lag` steps, and the standard deviation of the loss."""
        return {
            "rho_1": self._rho(1),
            f"rho_{self.lag}": self._rho(self.lag),
            "loss_sd": float((detrended(self.losses).square().sum() / (self.steps - 2)).sqrt()),
        }

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums, "weights": self.weights, "losses": self.losses}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self.state_dict().items():
            value.copy_(state[name])


def detrended(series: Tensor) -> Tensor:
    """A series [n, …] less its least-squares line, in float64."""
    x = series.double() - series.double().mean(0)
    t = torch.arange(len(series), dtype=torch.float64, device=series.device)
    t -= t.mean()
    slope = torch.tensordot(t, x, 1) / t.square().sum()
    return x - t.reshape(-1, *[1] * (x.ndim - 1)) * slope
