"""Malformed words and damaged files, some hundreds of them: an answer in words, an exit status, nothing damaged.

Every case is drawn from its number alone, so `EMABENCH_FUZZ=5000` begins with the same ones. What fails is printed
with its kind, its number and what was thrown.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from emabench.cli import main
from emabench.compose import configuration
from emabench.errors import DONE, FAILED, MISTAKE, UserError
from emabench.tables import spec
from emabench.training.start import run

CASES = int(os.environ.get("EMABENCH_FUZZ", "510"))
SHARES = {  # of the cases, by kind
    "words": 0.2,
    "table words": 0.1,
    "verbs": 0.1,
    "table file": 0.15,
    "result file": 0.17,
    "history file": 0.08,
    "config file": 0.1,
    "checkpoint": 0.05,
    "training": 0.05,
}
ALLOWED = {  # what each kind may be answered with
    "words": {DONE, MISTAKE},
    "table words": {DONE, MISTAKE},
    "verbs": {DONE, MISTAKE},
    "table file": {DONE, MISTAKE},
    "result file": {DONE, FAILED, MISTAKE},  # of another task, which is not compared
    "history file": {DONE},
    "config file": {DONE, FAILED, MISTAKE},  # a device that is not here is a mistake
    "checkpoint": {DONE, FAILED, MISTAKE},  # the one before; of another shape; none that is whole
    "training": {DONE, FAILED, MISTAKE},
}
KEYS = [
    "task",
    "scale",
    "seed",
    "steps",
    "batch_size",
    "ema.decay",
    "ema.every",
    "ema.start",
    "ema.warmup",
    "ema.debias",
    "ema.buffers",
    "ema.active",
    "averages",
    "+averages.x",
    "averages.raw",
    "clip.max_norm",
    "optimizer.lr",
    "optimizer.betas",
    "optimizer.name",
    "optimizer",
    "schedule",
    "schedule.name",
    "schedule.milestones",
    "schedule.warmup",
    "snapshots.every",
    "snapshots.sigma_rel",
    "evaluate.every",
    "precision",
    "device",
    "workers",
    "checkpoint.every",
    "checkpoint.keep",
    "log",
    "log_every",
    "group",
    "rerun",
    "task.noise",
    "task.curvatures",
    "+task.x",
    "ema",
    "hydra.run.dir",
    "hydra/launcher",
    "nosuch",
    "+nosuch",
    "++ema.decay",
    "~ema",
    "~seed",
    "ema.warmup.shape",
    "+ema.warmup.steps",
    "compile",
]
VALUES = [
    "0",
    "1",
    "-1",
    "2",
    "0.5",
    "1.0",
    "1e-300",
    "1e308",
    "1e999",
    "nan",
    "inf",
    "-inf",
    "null",
    "true",
    "false",
    "~",
    "abc",
    "''",
    '""',
    "[]",
    "[1]",
    "[0.9,0.99]",
    "[0.9,x]",
    "{}",
    "{a:1}",
    "{kind:ema}",
    "{kind:mean,start:-1}",
    "{kind:power_ema,sigma_rel:0}",
    "{kind:lawa,count:0}",
    "{shape:linear,steps:0}",
    "[[[]]]",
    "{shape:cosine}",
    "{shape:x}",
    "9223372036854775808",
    "1_0",
    "0x10",
    "quadratic",
    "ddpm",
    "smoke",
    "paper",
    "1,2",
    "range(3)",
    "${seed}",
    "${nosuch}",
    "${ema}",
    "${by_scale:1}",
    "${oc.env:NOSUCH}",
    "../../etc",
    "\\x00",
    "∞",
    "'a",
    "b'",
    "a=b",
    "=",
    "[",
    "{",
    "}",
    "${",
    "$",
    "???",
    "1:2",
    "cuda:99",
    "cpu",
    "log",
    "linear",
    "{kind:ema,decay:0.9,decay:1}",
    "{kind:mixture}",
    "{kind:per_layer,rules:1}",
    "{kind:[]}",
    "choice(1,2)",
    "glob(*)",
    "int(3)",
    "str([)",
]
STRANGE: list[Any] = [
    None,
    True,
    [],
    {},
    [[]],
    {"": 0},
    "",
    "x",
    "∞",
    "nan",
    -1,
    0,
    0.5,
    1e308,
    10**400,
    2**63,
]
UNSAFE = (
    "task",
    "scale",
    "steps",
    "log",
    "hydra/launcher",
    "device",
    "workers",
)  # would train long, or elsewhere
FRINGE = [
    "optimizer.lr=1e30",
    "optimizer.lr=1e-300",
    "optimizer.lr=1e308",
    "seed=9223372036854775807",
    "batch_size=1",
    "batch_size=4096",
    "ema.decay=0",
    "ema.decay=[0,0.5,0.999999999]",
    "ema.every=9",
    "ema.start=99",
    "ema.debias=false",
    "log_every=99",
    "log_every=1",
    "schedule.name=cosine",
    "schedule.warmup=100",
    "schedule.name=linear",
    "clip.max_norm=1e-300",
    "clip.max_norm=1e300",
    "+averages.x={kind:mean,start:99}",
    "+averages.x={kind:lawa}",
    "+averages.x={kind:power_ema,sigma_rel:0.28}",
    "snapshots.every=1",
    "snapshots.every=99",
    "evaluate.every=1",
    "checkpoint.every=1",
    "checkpoint.minutes=1e-9",
    "compile=false",
    "precision=bf16",
    "precision=fp16",
    "task.noise=0.0",
    "task.noise=1e30",
    "task.curvatures=1",
    "task.replicas=1",
    "task.start=1e38",
    "ema.warmup={shape:linear,steps:1}",
    "ema.warmup={shape:ratio}",
    "ema.buffers=copy",
    "group=x",
    "rerun=true",
    "steps=1",
]
VERBS = (
    "table",
    "report",
    "compare",
    "export",
    "evaluate",
    "posthoc",
    "list",
    "data",
    "bench",
    "trian",
    "-x",
    "--cfg",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of a run in the real format, with two checkpoints, snapshots and a history each."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("fuzz") / "results"
    for seed in range(3):
        words = [
            "task=quadratic",
            "scale=smoke",
            f"results_dir={place}",
            "device=cpu",
            f"seed={seed}",
            "steps=20",
        ]
        run(
            configuration(
                [*words, "log_every=2", "evaluate.every=10", "checkpoint.every=10", "checkpoint.keep=2"]
            )
        )
    return place


class Thrower:
    """Makes one case of each kind from a generator; each returns what was thrown, in words, and the exit status."""

    def __init__(self, trained: Path, scratch: Path) -> None:
        self.trained, self.scratch = trained, scratch
        self.tables = [
            path.read_bytes()
            for path in sorted((Path(spec.__file__).parents[2] / "conf/table").glob("*.yaml"))
        ]

    def words(self, draw: random.Random) -> tuple[object, int]:
        words = ["--cfg", *(self._word(draw) for _ in range(draw.randint(1, 3)))]
        return words, main(words)

    def table_words(self, draw: random.Random) -> tuple[object, int]:
        name = draw.choice([*spec.names(), "nosuch", "", "numeric", "../x"])
        own = [
            "seeds=0",
            "seeds=x",
            "seeds=",
            "jobs=-1",
            "launcher=x",
            "cluster=x",
            "cluster.a=[",
            "seed=1",
            "--what",
        ]
        words = [
            draw.choice(own) if draw.random() < 0.4 else self._word(draw) for _ in range(draw.randint(0, 2))
        ]
        words = ["table", name, "seeds=1", "--dry-run", *words, f"results_dir={self.scratch}/none"]
        return words, main(words)

    def verbs(self, draw: random.Random) -> tuple[object, int]:
        verb = draw.choice(VERBS)
        garbage = [
            "nowhere",
            "/dev/null",
            "",
            "=",
            "average=x",
            "decay=",
            "decay=2",
            "--curve",
            "x" * 300,
            "..",
            "\\",
        ]
        words = [verb, *(draw.choice(garbage) for _ in range(draw.randint(1, 2)))]
        if verb == "report":
            words = [verb, f"results_dir={self.scratch}/none", self._word(draw)]
        return words, main(words)

    def table_file(self, draw: random.Random) -> tuple[object, int]:
        text = draw.choice(self.tables)
        damaged = self._text(draw, text) if draw.random() < 0.5 else self._data(draw, yaml.safe_load(text))
        file = self.scratch / "table.yaml"
        file.write_bytes(damaged)
        try:
            spec.read(file)
        except UserError as error:
            assert str(file) in str(error)
            return damaged, MISTAKE
        return damaged, DONE

    def result_file(self, draw: random.Random) -> tuple[object, int]:
        return self._damaged(draw, "result.json", ["compare"], draw.random() < 0.4)

    def history_file(self, draw: random.Random) -> tuple[object, int]:
        return self._damaged(draw, "history.jsonl", ["compare"], draw.random() < 0.4)

    def config_file(self, draw: random.Random) -> tuple[object, int]:
        verb = draw.choice(["compare", "export"])
        return self._damaged(draw, "config.yaml", [verb], verb == "compare" and draw.random() < 0.5)

    def checkpoint(self, draw: random.Random) -> tuple[object, int]:
        return self._damaged(draw, "checkpoints/*.pt", ["export"], report=False)

    def training(self, draw: random.Random) -> tuple[object, int]:
        word = draw.choice(FRINGE)
        if draw.random() < 0.3:
            safe = [key for key in KEYS if key.split(".")[0] not in UNSAFE]
            word = f"{draw.choice(safe)}={draw.choice(VALUES)}"
        words = ["task=quadratic", "scale=smoke", "device=cpu", "steps=4", f"results_dir={self.scratch}/runs"]
        return word, main([*words, word])

    def _word(self, draw: random.Random) -> str:
        if draw.random() < 0.15:
            return "".join(
                chr(draw.choice([draw.randrange(32, 127), draw.randrange(1, 0x2FFF)])) for _ in range(8)
            )
        word = f"{draw.choice(KEYS)}={draw.choice(VALUES)}"
        if draw.random() < 0.15:
            at = draw.randrange(len(word))
            word = word[:at] + chr(draw.randrange(1, 255)) + word[at + draw.randint(0, 2) :]
        return word

    def _damaged(
        self, draw: random.Random, pattern: str, verb: list[str], report: bool
    ) -> tuple[object, int]:
        """One file of one run damaged; the commands that read it leave everything as it was."""
        place = self.scratch / "results"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.trained, place)
        runs = sorted((place / "quadratic").iterdir())
        files = sorted(runs[0].glob(pattern))
        for file in files if draw.random() < 0.3 else files[-1:]:
            whole = file.read_bytes()
            if file.suffix == ".pt" or draw.random() < 0.4:
                damaged = self._text(draw, whole)
                if file.suffix == ".pt" and draw.random() < 0.3:  # whole by its name
                    file.unlink()
                    file = file.with_name(f"{file.name[:14]}{hashlib.sha256(damaged).hexdigest()[:16]}.pt")
            elif file.suffix == ".jsonl":
                lines = whole.splitlines()
                at = draw.randrange(len(lines))
                lines[at] = self._data(draw, json.loads(lines[at])).replace(b"\n", b" ")
                damaged = b"\n".join(lines)
            else:
                damaged = self._data(draw, yaml.safe_load(whole))
            file.write_bytes(damaged)
        before = hashes(place)
        if verb == ["export"]:
            words = ["export", str(runs[0]), "average=raw", f"to={self.scratch}/export"]
        else:
            words = [*verb, *map(str, runs)]
        status = main(words)
        if report:
            answered = main(["report", f"results_dir={place}"])
            assert answered == DONE, "one damaged file must not cost the whole page"
            shutil.rmtree(place / "report")
        assert hashes(place) == before, "a command that reads has written"
        return damaged, status

    def _text(self, draw: random.Random, data: bytes) -> bytes:
        """Bytes cut, flipped, put in, repeated or thrown away."""
        at, to = sorted((draw.randrange(len(data) + 1), draw.randrange(len(data) + 1)))
        match draw.randrange(5):
            case 0:
                return data[:at]
            case 1:
                return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
            case 2:
                return data[:at] + draw.randbytes(draw.randint(1, 20)) + data[at:]
            case 3:
                return data[:to] + data[at:]
            case _:
                return (
                    b""
                    if draw.random() < 0.2
                    else draw.choice([b"[" * 5000, b"\0" * 50, b"\xff\xfe", b"!!bool x", b"&a [*a]"])
                )

    def _data(self, draw: random.Random, data: Any) -> bytes:
        """One place in the data taken away, renamed or replaced by something strange."""
        places: list[tuple[Any, Any]] = []

        def walk(node: Any) -> None:
            for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
                places.append((node, key))
                if isinstance(value, dict | list):
                    walk(value)

        walk(data)
        node, key = draw.choice(places)
        match draw.randrange(4):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[draw.choice(["", "x", "raw", "∞"])] = node.pop(key)
            case _:
                node[key] = draw.choice(STRANGE)
        return json.dumps(data, ensure_ascii=False).encode()  # JSON is YAML


def hashes(place: Path) -> dict[str, str]:
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.timeout(60 + CASES)
def test_whatever_is_thrown_is_answered_in_words(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.chdir(tmp_path)
    thrower = Thrower(trained, tmp_path)
    before = hashes(trained)
    counts: dict[str, Counter[int]] = {}
    wrong = []
    for kind, share in SHARES.items():
        throw: Callable[[random.Random], tuple[object, int]] = getattr(thrower, kind.replace(" ", "_"))
        counts[kind] = Counter()
        for number in range(round(CASES * share)):
            screen = io.StringIO()
            try:
                with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
                    thrown, status = throw(random.Random(f"{kind} {number}"))
            except (Exception, SystemExit, RecursionError) as error:
                wrong.append(f"{kind} {number}: {type(error).__name__}: {str(error)[:300]}")
                continue
            counts[kind][status] += 1
            if status not in ALLOWED[kind] or "Traceback" in screen.getvalue():
                wrong.append(f"{kind} {number}: {status} for {str(thrown)[:300]}: {screen.getvalue()[-300:]}")
            if status != DONE and not screen.getvalue().strip() and kind != "table file":
                wrong.append(f"{kind} {number}: {status} and not a word for {str(thrown)[:300]}")
    total = sum(sum(found.values()) for found in counts.values())
    said_of = [f"{total} malformed inputs, answered with exit status"]
    for kind, found in counts.items():
        said_of.append(
            f"  {kind:<14}" + "  ".join(f"{status}: {found[status]:<4}" for status in sorted(found))
        )
    record_property("summary", "\n".join(said_of))
    assert hashes(trained) == before
    assert not wrong, "\n".join(wrong)
