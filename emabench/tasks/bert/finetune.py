"""Fine-tuning of a copy of the encoder, on GLUE or on the detection of replaced tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emabench.data.text import load_hub
from emabench.data.text_tokens import Stream
from emabench.tasks.bert.options import Options

# By GLUE task: the columns of its one or two sentences, and the split that accuracy is measured on.
GLUE = {
    "mnli": (("premise", "hypothesis"), "validation_matched"),
    "mrpc": (("sentence1", "sentence2"), "validation"),
    "qnli": (("question", "sentence"), "validation"),
    "qqp": (("question1", "question2"), "validation"),
    "rte": (("sentence1", "sentence2"), "validation"),
    "sst2": (("sentence",), "validation"),
}


@dataclass(frozen=True)
class Examples:
    """Labelled sequences, on the device."""

    ids: Tensor  # [n, length]
    segments: Tensor  # [n, length]
    attention_mask: Tensor | None  # [n, length], False where padded; None where nothing is
    labels: Tensor  # [n]
    classes: int

    def take(self, chosen: Tensor) -> Examples:
        attention_mask = None if self.attention_mask is None else self.attention_mask[chosen]
        return Examples(
            self.ids[chosen].long(),
            self.segments[chosen].long(),
            attention_mask,
            self.labels[chosen],
            self.classes,
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

    def forward(self, ids: Tensor, segments: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Scores [n, classes]."""
        pooled = self.encoder(ids, attention_mask=attention_mask, token_type_ids=segments, return_dict=False)[
            1
        ]
        return self.head(self.drop(pooled))


def replaced_token(
    stream: Stream, count: int, special: Mapping[str, int], length: int, draws: torch.Generator
) -> Examples:
    """Windows of the text, and whether tokens of them were replaced: in every other window, a third of the tokens on
    average are replaced by tokens from anywhere in the text, which keeps the token frequencies."""
    tokens = length - 2
    starts = torch.randint(stream.length - tokens + 1, (count,), generator=draws)
    replacement = torch.randint(stream.length, (count, tokens), generator=draws)
    labels = torch.arange(count) % 2
    replaced = (torch.rand(count, tokens, generator=draws) < 1 / 3) & (labels[:, None] == 1)
    at = torch.where(replaced, replacement, starts[:, None] + torch.arange(tokens))
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
        attention_mask = torch.tensor([e.attention_mask for e in encoded], dtype=torch.bool, device=device)
        labels = torch.tensor(list(rows["label"]), device=device)
        return Examples(ids, segments, attention_mask, labels, int(labels.max()) + 1)

    return examples("train"), examples(held_out)
