"""The task: pre-training, its validation perplexity, fine-tuning and the variance of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from emabench.data.text import open_corpus
from emabench.data.text_tokens import GivenTokenizer, Stream, Subwords, Vocabulary, tokenised
from emabench.errors import UserError
from emabench.seeding import generator
from emabench.tasks import base
from emabench.tasks.base import Direction
from emabench.tasks.bert.finetune import Classifier, Examples, glue, replaced_token
from emabench.tasks.bert.model import Model
from emabench.tasks.bert.options import Options
from emabench.tasks.bert.sequences import Batch, Sequences, special_ids
from emabench.tasks.bert.trace import Trace

EVALUATION_BATCH = 64  # sequences at a time
COUNTED = 1 << 24  # tokens of a text that are counted at a time: BERT's is larger than memory


class Task(base.Task):
    """BERT pre-training."""

    metrics: ClassVar[Mapping[str, Direction]] = {
        "perplexity": Direction.LOWER,  # of the masked tokens of the validation text
        "nats_per_character": Direction.LOWER,  # of the same tokens: comparable between vocabularies
        "finetune_accuracy": Direction.HIGHER,  # percent
        "variance_reduction": Direction.HIGHER,  # variance of the raw weights over that of these, about their trends
        "ar1_reduction": Direction.HIGHER,  # what it would be if the weights were AR(1) processes with their ρ
        "relative_variance": Direction.LOWER,  # of these weights about their trend, over their mean square
    }

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
        self.special = special_ids(self.text.folder)
        self.train = self._sequences(Stream(self.text.train, context.device))
        self.validation = self._fixed(self._sequences(Stream(self.text.valid, context.device)))
        self.labelled = self._labelled()
        self.model = Model(options, self.text.size, self.special["[PAD]"]).to(context.device)
        self.trained = context.parallel(self.model)
        # As in BERT's own optimiser, biases and LayerNorm have no weight decay.
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
        """The same sequences and masks for every set of weights, seed and batch size, spread evenly over the text."""
        count = self.options.validation_sequences
        starts = torch.linspace(0, sequences.stream.length - sequences.tokens, count).long()
        return sequences.at(starts, generator(0, "validation")).split(EVALUATION_BATCH)

    def _labelled(self) -> tuple[Examples, Examples]:
        finetune, length = self.options.finetune, self.options.length
        if finetune.task == "replaced_token":
            draws = generator(0, "replaced_token")  # the same examples for every seed
            valid = Stream(self.text.valid, self.context.device)
            train_count = finetune.steps * finetune.batch_size
            train = replaced_token(self.train.stream, train_count, self.special, length, draws)
            return train, replaced_token(valid, finetune.test, self.special, length, draws)
        return glue(finetune.task, self.text.folder, length, self.special["[PAD]"], self.context.device)

    @property
    def measured_with(self) -> Mapping[str, str]:
        o, f = self.options, self.options.finetune
        task = f"{f.test} windows" if f.task == "replaced_token" else f"{f.task}, development set"
        traced = f"{len(self.trace.at)} weights over the last {self.trace.steps} steps"
        return {
            "perplexity": f"{self.text.label}, {o.validation_sequences} × {o.length} tokens, {o.masked:.0%} masked",
            "finetune_accuracy": f"{task}, mean of {f.restarts}",
            "variance_reduction": traced,
            "ar1_reduction": traced,
            "relative_variance": traced,
        }

    @property
    def units(self) -> Mapping[str, str]:
        per_token = f"per masked {self.text.token}"
        return {"perplexity": per_token, "nats_per_character": "nats", "finetune_accuracy": "%"}

    def averaged(self) -> nn.Module:
        return self.model

    def batch(self, step: int) -> Batch:
        drawn = self.train.draw(self.context.batch_size, self.context.generator("batch", step))
        return drawn.shard(self.context)

    def train_step(self, batch: Batch, step: int) -> Mapping[str, Tensor | float]:
        scores, is_next = self.trained(batch)
        masked_lm = F.cross_entropy(scores.float().flatten(0, 1), batch.targets.flatten())
        next_sentence = F.cross_entropy(is_next.float(), batch.is_next)
        norm = self.optimizer.step(masked_lm + next_sentence, step)
        self.done = step + 1
        self.trace.add(self.done, masked_lm.detach())
        scalars = {"loss": (masked_lm + next_sentence).detach(), "loss_masked": masked_lm.detach()}
        return scalars | ({} if norm is None else {"grad_norm": norm})

    # -- measuring ----------------------------------------------------------------------------------------------

    def evaluate(self) -> Mapping[str, float]:
        """All metrics at the end of the run; before that those of the validation text only, for the others take minutes."""
        metrics = self._masked_lm()
        if self.done < self.context.steps:
            return metrics
        return metrics | {"finetune_accuracy": self._finetuned()} | self.trace.of_weights_in_place()

    def _masked_lm(self) -> dict[str, float]:
        total = torch.zeros((), dtype=torch.float64, device=self.context.device)
        for batch in self.validation:
            scores, _ = self.model(batch)
            total += F.cross_entropy(scores.float().flatten(0, 1), batch.targets.flatten(), reduction="sum")
        targets = torch.cat([batch.targets.flatten().cpu() for batch in self.validation])
        loss = float(total) / len(targets)
        characters = int(self.text.characters()[targets].sum())
        return {
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "nats_per_character": float(total) / characters,
        }

    def _finetuned(self) -> float:
        """Mean accuracy, in percent, of copies of the weights in place that are fine-tuned."""
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
                (classifier(part.ids, part.segments, part.attention_mask).argmax(1) == part.labels).sum()
                for part in test.batches(EVALUATION_BATCH)
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
            scores = classifier(part.ids, part.segments, part.attention_mask)
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
        tokens = torch.cat([batch.targets.flatten().cpu() for batch in self.validation])
        labels = self.labelled[1].labels
        return {
            "unigram_perplexity": math.exp(-float(log_share[tokens].mean())),
            "chance_accuracy": 100.0 * float(labels.bincount().max()) / len(labels),
        } | self.trace.statistics()

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
