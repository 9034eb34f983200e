"""Text as token ids: encoded once, kept in the cache under the digest of its content, and memory-mapped from there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from emabench.data.text import SPLITS, Corpus
from emabench.errors import UserError

FORMAT = 2  # of what is in the cache; count up when any of it changes
RESIDENT = 2**30  # bytes: token streams up to this size are copy_to_cpu to the device
UNKNOWN = "<unk>"
END_OF_LINE = "<eos>"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 … 4 of a trained subword vocabulary


class Encoder(Protocol):
    """Turns documents into ids below `size`."""

    @property
    def size(self) -> int: ...

    def encode(self, documents: Iterable[str]) -> Iterator[list[int]]: ...

    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class Text:
    """A tokenised corpus: one stream of ids for each split, its documents end to end."""

    train: np.ndarray  # uint16 or uint32, memory-mapped
    valid: np.ndarray
    test: np.ndarray
    size: int  # ids lie below it
    label: str  # for `measured_with`: how many there are to train, validate and test on, how many different
    folder: Path  # where it lies; `tokenizer.json` in it for subwords
    token: str  # what a token is: "character", "word", "subword"

    def characters(self) -> Tensor:
        """How many characters of text each id stands for: int64 (size,). Makes losses of unlike tokens comparable.

        A word counts with the blank or newline after it, so `<eos>` counts nothing. Tokens of byte-level BPE are
        counted in bytes. Special tokens stand for no text.
        """
        if self.token == "character":
            return torch.ones(self.size, dtype=torch.long)
        if self.token == "word":
            words = json.loads((self.folder / "vocabulary.json").read_text())
            return torch.tensor([0 if word == END_OF_LINE else len(word) + 1 for word in words])
        model = json.loads((self.folder / "tokenizer.json").read_text())["model"]
        counts = torch.zeros(self.size, dtype=torch.long)
        for token, index in model["vocab"].items():
            if token in SPECIAL:
                continue
            prefix = model.get("continuing_subword_prefix") or "##"
            pieces = (
                model["type"] == "WordPiece"
            )  # in WordPiece a piece that begins a word stands for the blank before it
            counts[index] = (
                len(token.removeprefix(prefix)) + (not token.startswith(prefix)) if pieces else len(token)
            )
        return counts


class Stream:
    """A stream of ids from which windows are taken: on the device if it fits, else memory-mapped."""

    def __init__(self, ids: np.ndarray, device: torch.device) -> None:
        self.device, self.length = device, len(ids)
        self.ids = torch.from_numpy(ids.astype(np.int32)).to(device) if 4 * len(ids) <= RESIDENT else ids

    def take(self, at: Tensor) -> Tensor:
        """The ids at these places (int64, on the CPU): int64 of the same shape, on the device."""
        if isinstance(self.ids, Tensor):
            return self.ids[at.to(self.device, non_blocking=True)].long()
        return torch.from_numpy(self.ids[at.numpy()].astype(np.int64)).to(self.device)

    def windows(self, starts: Tensor, length: int) -> Tensor:
        """The `length` ids from each of `starts` (int64, on the CPU): int64 [len(starts), length] on the device."""
        return self.take(starts[:, None] + torch.arange(length))


def tokenised(
    corpus: Corpus, vocabulary: Vocabulary, cache_dir: Path, progress: Callable[[str], None]
) -> Text:
    """The corpus as ids, from the cache or into it. Several processes may ask for the same at once."""
    key = hashlib.sha256(f"{FORMAT}/{corpus.digest}/{vocabulary.key}".encode()).hexdigest()[:24]
    folder = cache_dir / "text" / key
    if not folder.is_dir():
        progress(f"text: {corpus.name} is tokenised ({vocabulary.name}) into {folder}")
        _write(corpus, vocabulary, folder)
    meta = json.loads((folder / "meta.json").read_text())
    streams = {
        split: np.memmap(folder / f"{split}.bin", dtype=meta["dtype"], mode="r")
        if meta["lengths"][split]
        else np.zeros(0, meta["dtype"])
        for split in SPLITS
    }
    # Counts stand for the content: they tell whether a text is the one that published numbers were measured on.
    lengths = " + ".join(str(meta["lengths"][split]) for split in SPLITS)
    label = f"{lengths} {vocabulary.name}, {meta['size']} different"
    token = {"characters": "character", "words": "word"}.get(vocabulary.name, "subword")
    return Text(**streams, size=meta["size"], label=label, folder=folder, token=token)


def _write(corpus: Corpus, vocabulary: Vocabulary, folder: Path) -> None:
    """Write aside and rename, so that a folder that exists is complete."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        encoder = vocabulary.fit(corpus)
        dtype = np.dtype(np.uint16 if encoder.size <= 2**16 else np.uint32)
        lengths = {}
        for split in SPLITS:
            lengths[split] = 0
            with (aside / f"{split}.bin").open("wb") as file:
                for ids in encoder.encode(corpus.documents(split)):
                    file.write(np.asarray(ids, dtype).tobytes())
                    lengths[split] += len(ids)
                file.flush()
                os.fsync(file.fileno())
        encoder.save(aside)
        meta = {
            "corpus": corpus.name,
            "vocabulary": vocabulary.name,
            "size": encoder.size,
            "dtype": dtype.name,
            "lengths": lengths,
        }
        (aside / "meta.json").write_text(json.dumps(meta, indent=1))
        try:
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process wrote the same content first
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


# -- vocabularies ---------------------------------------------------------------------------------------------


class Vocabulary(Protocol):
    """How text becomes ids. `key` differs where the ids of the same text would."""

    name: str
    key: str

    def fit(self, corpus: Corpus) -> Encoder: ...


@dataclass(frozen=True)
class Symbols:
    """An encoder over a list of symbols; id 0 is `<unk>`. `split` cuts a document into symbols."""

    ids: dict[str, int]
    split: Callable[[str], Iterable[str]]

    @property
    def size(self) -> int:
        return len(self.ids)

    def encode(self, documents: Iterable[str]) -> Iterator[list[int]]:
        for document in documents:
            yield [self.ids.get(symbol, 0) for symbol in self.split(document)]

    def save(self, folder: Path) -> None:
        (folder / "vocabulary.json").write_text(json.dumps(list(self.ids)))


def _symbols(corpus: Corpus, split: Callable[[str], Iterable[str]], least: int) -> Symbols:
    """All symbols that the training text has at least so often."""
    counts: Counter[str] = Counter()
    for document in corpus.documents("train"):
        counts.update(split(document))
    frequent = sorted(symbol for symbol, count in counts.items() if count >= least and symbol != UNKNOWN)
    return Symbols({symbol: index for index, symbol in enumerate([UNKNOWN, *frequent])}, split)


class Characters:
    """Characters, of those that the training text has at least ten times; a document ends in a newline."""

    name, key = "characters", "characters-10"

    def fit(self, corpus: Corpus) -> Encoder:
        return _symbols(corpus, lambda document: document + "\n", least=10)


class Words:
    """Words between blanks, each line ended by `<eos>`: how the PTB files are read (they have `<unk>` in them)."""

    name, key = "words", "words"

    def fit(self, corpus: Corpus) -> Encoder:
        return _symbols(corpus, _words, least=1)


def _words(document: str) -> Iterator[str]:
    for line in document.splitlines():
        yield from line.split()
        yield END_OF_LINE


class Subwords:
    """`size` byte-level BPE tokens, lower case, trained on the corpus; a document ends in [SEP].

    Byte-level because its training gives the same vocabulary every time; that of WordPiece depends on the order
    of a hash table.
    """

    name = "subwords"

    def __init__(self, size: int) -> None:
        self.size, self.key = size, f"bpe-{size}"

    def fit(self, corpus: Corpus) -> Encoder:
        from tokenizers import (
            Regex,
            Tokenizer,
            decoders,
            models,
            normalizers,
            pre_tokenizers,
            processors,
            trainers,
        )

        tokenizer = Tokenizer(models.BPE())
        blanks = normalizers.Replace(Regex(r"\s+"), " ")
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), blanks])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.size,
            special_tokens=list(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(corpus.documents("train"), trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
        )
        return Given(tokenizer)


class GivenTokenizer:
    """A trained tokenizer: a `tokenizer.json`, or a name on the Hugging Face hub; a document ends in [SEP]."""

    def __init__(self, name: str, key: str = "task.tokenizer") -> None:
        from tokenizers import Tokenizer

        option = f"{key}={name}"
        try:
            local = Path(name).is_file()
            if name.endswith(".json") and not local:  # nor a device that never ends
                raise FileNotFoundError(f"no such file: {name}")
            self.tokenizer = Tokenizer.from_file(name) if local else Tokenizer.from_pretrained(name)
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(
                f"{option}: is neither a tokenizer.json nor to be had from the Hugging Face hub "
                f"({_first_sentence(error)}); leave it null to train one on the corpus"
            ) from error
        if missing := [token for token in SPECIAL if self.tokenizer.token_to_id(token) is None]:
            raise UserError(f"{option}: has no {', '.join(missing)}; name a tokenizer made for BERT")
        digest = hashlib.sha256(json.dumps(json.loads(self.tokenizer.to_str()), sort_keys=True).encode())
        self.name, self.key = f"tokens of {Path(name).name}", f"given-{digest.hexdigest()}"

    def fit(self, corpus: Corpus) -> Encoder:
        return Given(self.tokenizer)


def _first_sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[0].split(". ")[0]


class Given:
    """An encoder over a tokenizer of the `tokenizers` library."""

    BATCH = 256  # documents handed to its threads at a time

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.size = int(tokenizer.get_vocab_size())

    def encode(self, documents: Iterable[str]) -> Iterator[list[int]]:
        end = self.tokenizer.token_to_id("[SEP]")
        remaining = iter(documents)
        while batch := list(islice(remaining, self.BATCH)):
            for encoding in self.tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                yield [*encoding.ids, end]

    def save(self, folder: Path) -> None:
        self.tokenizer.save(str(folder / "tokenizer.json"))
