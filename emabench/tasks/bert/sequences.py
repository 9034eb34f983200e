"""BERT's training examples: pairs of segments with masked tokens (Devlin et al. 2019, §3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from emabench.data.text_tokens import Stream
from emabench.tasks import base
from emabench.tasks.bert.options import Options


@dataclass(frozen=True)
class Batch:
    """Sequences of two segments, [CLS] a … [SEP] b … [SEP], with tokens masked. All on the device."""

    ids: Tensor  # [n, length]
    segments: Tensor  # [n, length], 0 or 1
    positions: Tensor  # [n, masked tokens], of the masked tokens
    targets: Tensor  # [n, masked tokens], the original tokens
    is_next: Tensor  # [n], 1 if the second segment follows the first in the text, 0 if it is from anywhere

    def shard(self, context: base.Context) -> Batch:
        """This process's shard. Every sequence has as many masked tokens, so shards have equal weight in a mean."""
        return Batch(*map(context.shard, self._tensors()))

    def split(self, size: int) -> list[Batch]:
        """The same sequences in batches of at most `size`."""
        return [Batch(*parts) for parts in zip(*(each.split(size) for each in self._tensors()), strict=True)]

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.ids, self.segments, self.positions, self.targets, self.is_next


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
        is_next = torch.rand(count, generator=generator) < 0.5
        anywhere = torch.randint(last + 1, (count,), generator=generator)
        second = torch.where(is_next, starts + first[:, 0], anywhere)
        j = torch.arange(length)
        in_first = j <= first  # with [CLS]; the second segment begins after [SEP] at first + 1
        at = torch.where(in_first, starts[:, None] + j - 1, second[:, None] + j - first - 2)
        ids = self.stream.take(at.clamp(0, self.stream.length - 1))
        ends = (j == first + 1) | (j == length - 1)
        framing = (ends | (j == 0)).to(ids.device)
        ids[:, 0] = self.special["[CLS]"]
        ids.masked_fill_(ends.to(ids.device), self.special["[SEP]"])
        segments = (j > first + 1).long().to(ids.device)
        ids, positions, targets = self._mask(ids, framing, generator)
        return Batch(ids, segments, positions, targets, is_next.long().to(ids.device))

    def _mask(
        self, ids: Tensor, framing: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Choose the tokens to predict: 80 % become [MASK], 10 % any token, 10 % stay (Devlin et al., §3.1)."""
        score = torch.rand(ids.shape, generator=generator).to(ids.device).masked_fill_(framing, -1.0)
        positions = score.topk(self.masked, 1).indices
        targets = ids.gather(1, positions)
        choice = torch.rand(positions.shape, generator=generator).to(ids.device)
        random = torch.randint(self.size, positions.shape, generator=generator).to(ids.device)
        replaced = torch.where(choice < 0.9, random, targets).masked_fill_(
            choice < 0.8, self.special["[MASK]"]
        )
        return ids.scatter(1, positions, replaced), positions, targets


def special_ids(folder: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    return {token: vocabulary[token] for token in ("[PAD]", "[CLS]", "[SEP]", "[MASK]")}
