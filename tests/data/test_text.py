"""Corpora and their token ids: what is held out, what is kept, and what a user hears of a corpus that is none."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from emabench.data import text, text_tokens
from emabench.data.text import BLOCK, SPLITS, Corpus, open_corpus
from emabench.data.text_tokens import (
    Characters,
    GivenTokenizer,
    Stream,
    Subwords,
    Vocabulary,
    Words,
    tokenised,
)
from emabench.errors import UserError


def lines(count: int) -> str:
    return "".join(f"line {i} of the story, {i * i} words long\n" for i in range(count))


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text(lines(3000))
    return path


def ids_of(corpus: Corpus, vocabulary: Vocabulary, cache: Path) -> text_tokens.Text:
    return tokenised(corpus, vocabulary, cache, lambda _: None)


def test_a_file_is_held_out_in_blocks_all_along_it(story: Path) -> None:
    corpus = open_corpus(str(story), story.parent)
    held = {split: list(corpus.documents(split)) for split in SPLITS}
    whole = story.read_text()
    assert sum(len(t) for texts in held.values() for t in texts) == len(whole)
    for split in ("valid", "test"):
        assert 0.03 < sum(map(len, held[split])) / len(whole) < 0.07
        assert all(t in whole and len(t) <= BLOCK for t in held[split])
        places = [whole.index(t) / len(whole) for t in held[split]]
        assert min(places) < 0.55 and max(places) > 0.6
    assert not any(t in train for t in held["valid"] for train in held["train"])


def test_the_python_corpus_is_the_same_every_time_and_has_no_code() -> None:
    one, two = open_corpus("topics", Path("none")), open_corpus("topics", Path("none"))
    assert one.digest == two.digest
    assert list(one.documents("train")) == list(two.documents("train"))
    assert 400_000 < sum(len(t) for split in SPLITS for t in one.documents(split)) < 700_000
    assert one.name.startswith("topics of ")


def test_docstrings_are_read_and_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good.py").write_text('"""Says what it is."""\ndef f():\n    "Does it."\nraise SystemExit\n')
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "hidden.py").write_text('"""Not everywhere."""')
    monkeypatch.setattr(text.sysconfig, "get_path", lambda _: str(tmp_path))
    corpus = open_corpus("python", tmp_path)
    found = "".join(t for split in SPLITS for t in corpus.documents(split))
    assert "Says what it is.\n\nDoes it." in found
    assert "SystemExit\n" not in found.partition("Does it.")[2][:20]
    assert "Not everywhere" not in found
    assert corpus.digest != open_corpus("topics", tmp_path).digest


def test_a_folder_goes_by_the_names_of_its_files(tmp_path: Path) -> None:
    for split, words in (("train", "a b <unk>"), ("valid", "a c"), ("test", "b")):
        (tmp_path / f"ptb.{split}.txt").write_text(f" {words} \n {words} \n")
    corpus = open_corpus(tmp_path.name, tmp_path.parent)
    found = ids_of(corpus, Words(), tmp_path / "cache")
    # <unk> 0, then <eos>, a, b in order; c is not in the training text.
    assert found.size == 4
    assert found.train.tolist() == [2, 3, 0, 1] * 2
    assert found.valid.tolist() == [2, 0, 1] * 2
    assert found.test.tolist() == [3, 1] * 2


def test_characters_come_back(story: Path, tmp_path: Path) -> None:
    corpus = open_corpus(str(story), tmp_path)
    found = ids_of(corpus, Characters(), tmp_path / "cache")
    symbols = json.loads((found.folder / "vocabulary.json").read_text())
    assert len(symbols) == found.size == int(found.train.max()) + 1
    for split in SPLITS:
        expected = "".join(document + "\n" for document in corpus.documents(split))
        assert "".join(symbols[i] for i in getattr(found, split)) == expected


def test_tokens_know_how_many_characters_they_stand_for(tmp_path: Path) -> None:
    content = "".join(f"one line is number {i}\n" for i in range(3000))
    (tmp_path / "text.txt").write_text(content)
    corpus = open_corpus(str(tmp_path / "text.txt"), tmp_path)
    train = "".join(corpus.documents("train"))
    for vocabulary in (Characters(), Words(), Subwords(400)):
        made = ids_of(corpus, vocabulary, tmp_path / "cache")
        counted = int(made.characters()[torch.from_numpy(made.train.astype("int64"))].sum())
        assert counted == pytest.approx(len(train), rel=0.01), vocabulary.name


def test_subwords_are_the_same_at_every_training(story: Path, tmp_path: Path) -> None:
    corpus = open_corpus(str(story), tmp_path)
    one, two = (ids_of(corpus, Subwords(400), tmp_path / cache) for cache in ("a", "b"))
    for split in SPLITS:
        assert np.array_equal(getattr(one, split), getattr(two, split))
    assert (one.folder / "tokenizer.json").read_bytes() == (two.folder / "tokenizer.json").read_bytes()
    given = ids_of(corpus, GivenTokenizer(str(one.folder / "tokenizer.json")), tmp_path / "c")
    assert np.array_equal(given.train, one.train)
    assert given.size == one.size == 400


def _tokenise(folder: str) -> list[int]:
    corpus = open_corpus("story.txt", Path(folder))
    return ids_of(corpus, Characters(), Path(folder) / "cache").valid[:100].tolist()


def test_text_is_tokenised_once_and_by_several_processes_at_once(
    story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(story.parent)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.map(_tokenise, [folder] * 6)
    assert found == [found[0]] * 6
    assert [path.name.startswith(".") for path in (story.parent / "cache" / "text").iterdir()] == [False]
    monkeypatch.setattr(text_tokens, "_write", lambda *_: pytest.fail("tokenised again"))
    assert _tokenise(folder) == found[0]
    monkeypatch.undo()
    story.write_text(lines(2999))  # other content: other ids
    _tokenise(folder)
    assert len(list((story.parent / "cache" / "text").iterdir())) == 2


def test_a_failure_leaves_nothing_half_written(story: Path, tmp_path: Path) -> None:
    corpus = open_corpus(str(story), tmp_path)

    def stops(split: str) -> Iterator[str]:
        yield from corpus.documents(split)
        if split == "test":
            raise OSError("disk full")

    broken = Corpus(corpus.name, corpus.digest, stops)
    with pytest.raises(OSError, match="disk full"):
        ids_of(broken, Characters(), tmp_path / "cache")
    assert list((tmp_path / "cache" / "text").iterdir()) == []
    assert len(ids_of(corpus, Characters(), tmp_path / "cache").test)


@pytest.mark.parametrize("resident", [2**30, 0])
def test_windows_are_the_same_from_memory_and_from_disk(
    resident: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_tokens, "RESIDENT", resident)
    ids = np.memmap(tmp_path / "ids", dtype=np.uint16, mode="w+", shape=(100,))
    ids[:] = np.arange(100) + 60_000
    windows = Stream(ids, torch.device("cpu")).windows(torch.tensor([0, 7, 95]), 5)
    assert windows.dtype == torch.int64
    assert windows.tolist() == [[60_000 + start + i for i in range(5)] for start in (0, 7, 95)]


def refusal(name: str, data_dir: Path) -> str:
    with pytest.raises(UserError) as refused:
        open_corpus(name, data_dir)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"task.corpus={name}: ")
    return str(refused.value)


def test_a_corpus_that_is_none_is_answered_in_one_line(tmp_path: Path) -> None:
    assert "no such file" in refusal("nowhere.txt", tmp_path)
    (tmp_path / "empty.txt").write_text(" \n")
    assert f"{tmp_path / 'empty.txt'} is empty" in refusal("empty.txt", tmp_path)
    (tmp_path / "latin.txt").write_bytes("schön".encode("latin-1"))
    message = refusal("latin.txt", tmp_path)
    assert f"{tmp_path / 'latin.txt'} is not UTF-8 (byte 3)" in message and "iconv" in message
    (tmp_path / "bare").mkdir()
    assert f"no .txt, .md, .rst, .tokens file in {tmp_path / 'bare'}" in refusal("bare", tmp_path)
    (tmp_path / "bare" / "ptb.train.txt").write_text("a b\n")
    assert "a train file and none for valid and test" in refusal("bare", tmp_path)
    (tmp_path / "bare" / "ptb.valid.txt").write_bytes(b"\xff")
    assert "ptb.valid.txt is not UTF-8" in refusal("bare", tmp_path)


class FakeHub:
    """Stands for the package `datasets`, whose data sets need a network."""

    def __init__(self, splits: dict[str, list[str]]) -> None:
        self.splits = splits

    def load_dataset(self, name: str, config: str | None) -> dict[str, object]:
        if name == "absent":
            raise FileNotFoundError("Couldn't reach 'absent' on the Hub\nmore of it")
        return {
            split: FakeSplit(rows, f"{name}-{config}-{split}-{len(rows)}")
            for split, rows in self.splits.items()
        }


class FakeSplit(list):
    column_names = ("text",)

    def __init__(self, rows: list[str], fingerprint: str) -> None:
        super().__init__({"text": row} for row in rows)
        self._fingerprint = fingerprint


def test_hub_data_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [f"row {i} " + "x" * 1500 for i in range(2000)]
    monkeypatch.setitem(sys.modules, "datasets", FakeHub({"train": rows}))
    corpus = open_corpus("hub:some/books,plain+other", tmp_path)
    held = {split: list(corpus.documents(split)) for split in SPLITS}
    assert all(len(document) >= BLOCK for texts in held.values() for document in texts)
    assert sum(document.count("row ") for texts in held.values() for document in texts) == 2 * len(rows)
    assert 0 < len(held["valid"]) == len(held["test"]) < len(held["train"]) / 100
    monkeypatch.setitem(
        sys.modules,
        "datasets",
        FakeHub({"train": rows[:5], "validation": rows[5:7], "test": rows[7:9]}),
    )
    split = open_corpus("hub:some/books,plain+other", tmp_path)
    assert split.digest != corpus.digest
    assert list(split.documents("valid")) == ["\n".join(rows[5:7])] * 2
    assert "Couldn't reach 'absent' on the Hub" in refusal("hub:absent", tmp_path)
    monkeypatch.setitem(
        sys.modules,
        "datasets",
        SimpleNamespace(load_dataset=lambda *_: {"train": SimpleNamespace(column_names=["x"])}),
    )
    assert "no split train with a column text" in refusal("hub:wrong", tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'emabench[hub]'" in refusal("hub:any", tmp_path)


def test_a_tokenizer_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, story: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"^task.tokenizer=.*tokenizer.json: is neither.*leave it null"):
        GivenTokenizer(str(tmp_path / "tokenizer.json"))
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE()).save(str(tmp_path / "bare.json"))
    with pytest.raises(UserError, match=r"has no \[PAD\]"):
        GivenTokenizer(str(tmp_path / "bare.json"))
