"""Results with a known truth, as files like those that runs leave behind."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from emabench.runs.result import RAW, Result, Row, to_json
from emabench.tables import spec
from emabench.tables.gather import Run, read_run

Truth = Callable[[int, float], float]
"""Seed and window (1 for raw) to the true value of a metric."""

AVERAGES = {
    RAW: 1.0,
    "ema_0.9": 10.0,
    "ema_0.99": 100.0,
    "ema_0.995": 200.0,
    "ema_0.998": 500.0,
    "ema_0.999": 1000.0,
}


def result(
    metrics: Mapping[str, Mapping[str, float | None]],
    directions: Mapping[str, str],
    *,
    task: str = "ddpm",
    scale: str = "small",
    seed: int = 0,
    steps: int = 5000,
    status: str = "finished",
    windows: Mapping[str, float] = AVERAGES,
    measured_with: Mapping[str, str] | None = None,
    run_id: str = "",
    references: Mapping[str, float] | None = None,
) -> Result:
    """A result with these metrics by average."""
    rows = []
    for average, values in metrics.items():
        window = windows.get(average, 1.0)
        described = {
            "half_life": math.log(2) * window,
            "centre_of_mass": window - 1,
            "effective_samples": 2 * window - 1,
            "start_weight": math.exp(-steps / window),
            "share": (window - 1) / steps,
        }
        profile: dict[str, Any] = {} if average == RAW else {"kind": "ema", "describe": described}
        if average.startswith("ema_"):
            profile["decay"] = float(average[4:])
        rows.append(Row(average, profile, dict(values)))
    return Result(
        run_id=run_id or f"{scale}-seed{seed}-0123456789",
        task=task,
        scale=scale,
        seed=seed,
        steps=steps,
        status=status,  # type: ignore[arg-type]
        rows=tuple(rows),
        metrics=dict(directions),
        measured_with=dict(measured_with or {}),
        references=dict(references or {}),
        timing={"train_s": 61.2, "averaging_s": 1.1, "evaluate_s": 9.4},
        environment={
            "commit": "abc123def456",
            "command": "emabench task=ddpm",
            "device": "cpu: x86_64",
            "torch": "2.11.0",
        },
        reason="loss was not finite" if status == "diverged" else None,
    )


def write(
    folder: Path, found: Result, config: Mapping[str, Any], history: list[dict[str, Any]], pictures: bool
) -> Run:
    """The run's directory as the trainer leaves it."""
    path = folder / found.task / found.run_id
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(yaml.safe_dump(dict(config)))
    (path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    (path / "result.json").write_text(to_json(found))
    if pictures and found.status == "finished":
        for i, row in enumerate(found.rows):
            (path / "artifacts" / row.average).mkdir(parents=True, exist_ok=True)
            noise = 0.8 if row.average == RAW else 0.8 / (1 + i)
            (path / "artifacts" / row.average / "samples.png").write_bytes(_png(noise, found.seed))
    run = read_run(path)
    assert run
    return run


def diffusion(folder: Path, seeds: int, diverged: tuple[int, ...] = ()) -> dict[str, dict[int, Run | None]]:
    """Runs of `ddpm_cifar10` in which FID falls to window 500 and rises again, and IS gains a little."""
    fid = {RAW: 12.0, "ema_0.9": 4.9, "ema_0.99": 3.9, "ema_0.995": 3.7, "ema_0.998": 3.5, "ema_0.999": 3.6}
    score = {
        RAW: 7.6,
        "ema_0.9": 7.7,
        "ema_0.99": 7.8,
        "ema_0.995": 7.82,
        "ema_0.998": 7.85,
        "ema_0.999": 7.84,
    }
    runs: dict[int, Run | None] = {}
    for seed in range(seeds):
        rng = np.random.default_rng([1, seed])
        common, rough = rng.normal(0, 0.03), rng.normal(0, 0.25)
        at_end = {}
        for average in AVERAGES:
            noise = common + rng.normal(0, 0.01) + (rough if average == RAW else 0)
            at_end[average] = {
                "fid": fid[average] * math.exp(noise),
                "is": score[average] * math.exp(-0.05 * noise + rng.normal(0, 0.002)),
            }
        history: list[dict[str, Any]] = []
        for step in range(100, 5001, 100):
            history.append(
                {
                    "step": step,
                    "wall": step / 80,
                    "loss": 0.4 * math.exp(-step / 900) + 0.1 + rng.normal(0, 0.01),
                    "lr": 2e-3,
                }
            )
            if step % 500 == 0 and step < 5000:
                history.append(
                    {"step": step, "eval": {a: _earlier(at_end, a, step / 5000, rng) for a in AVERAGES}}
                )
        found = result(
            at_end,
            {"fid": "lower", "is": "higher"},
            seed=seed,
            status="diverged" if seed in diverged else "finished",
            measured_with={
                "fid": "features of a digits classifier, 5000 samples",
                "is": "features of a digits classifier, 5000 samples",
            },
            references={"is_real": 9.96, "fid_real_halves": 0.98},
            run_id=f"small-seed{seed}-0a1b2c3d4e",
        )
        config = {
            "task": {"name": "ddpm", "data": "digits"},
            "scale": "small",
            "seed": seed,
            "steps": 5000,
            "schedule": {"name": "constant"},
            "optimizer": {"name": "adam", "lr": 0.002},
            "results_dir": "results",
        }
        runs[seed] = write(folder, found, config, history, pictures=True)
    return {"constant": runs}


def _earlier(
    at_end: Mapping[str, Mapping[str, float]], average: str, share: float, rng: np.random.Generator
) -> dict[str, float]:
    lag = 1 + 6 * (1 - share) * math.exp(-4 * share * (0.6 if AVERAGES[average] > 400 else 1))
    bump = math.exp(rng.normal(0, 0.25)) if average == RAW else 1
    return {
        "fid": at_end[average]["fid"] * lag * bump,
        "is": at_end[average]["is"] * (1 - 0.2 * (lag - 1) / 6),
    }


def classifiers(folder: Path, seeds: int) -> dict[str, dict[int, Run | None]]:
    """Runs of `imagenet_resnet50`: nothing to gain where the rate is annealed, 1.7 points at a constant one."""
    gains = {
        RAW: 0.0,
        "ema_0.9": 0.8,
        "ema_0.99": 1.4,
        "ema_0.995": 1.6,
        "ema_0.998": 1.7,
        "ema_0.999": 1.6,
        "swa": 1.7,
    }
    arms: dict[str, dict[int, Run | None]] = {"annealed": {}, "constant": {}}
    for arm, base, share in (("annealed", 89.16, 0.0), ("constant", 87.33, 1.0)):
        for seed in range(seeds):
            rng = np.random.default_rng([2, seed, share > 0])
            common = np.random.default_rng([3, seed]).normal(0, 0.15)
            at_end = {}
            for average, gain in gains.items():
                top1 = (
                    base
                    + common
                    + share * gain
                    + rng.normal(0, 0.04 if share == 0 or average != RAW else 0.2)
                )
                at_end[average] = {
                    "top1": top1,
                    "top5": 99 + (top1 - 87) / 8,
                    "nll": 0.34 - 0.04 * share * gain / 1.7 + rng.normal(0, 0.002),
                }
            history = [
                {
                    "step": s,
                    "eval": {
                        a: {
                            "top1": v["top1"]
                            - 14 * math.exp(-s / 500)
                            - (rng.normal(0.6, 0.3) if a == RAW and share else 0)
                        }
                        for a, v in at_end.items()
                    },
                }
                for s in range(200, 4000, 200)
            ]
            history += [
                {
                    "step": s,
                    "wall": s / 200,
                    "loss": 0.3 + 0.5 * math.exp(-s / 400) + rng.normal(0, 0.01),
                    "lr": 0.1,
                }
                for s in range(100, 4001, 100)
            ]
            found = result(
                at_end,
                {"top1": "higher", "top5": "higher", "nll": "lower"},
                task="classification",
                seed=seed,
                steps=4000,
                windows={**AVERAGES, "swa": 501.0},
                run_id=f"small-seed{seed}-{'aa' if arm == 'annealed' else 'cc'}11223344",
            )
            config = {
                "task": {"name": "classification", "data": "fashion_mnist"},
                "scale": "small",
                "seed": seed,
                "steps": 4000,
                "schedule": {"name": "cosine" if arm == "annealed" else "constant"},
            }
            arms[arm][seed] = write(folder, found, config, history, pictures=False)
    return arms


def target_networks() -> tuple[spec.Table, dict[str, dict[int, Run | None]]]:
    """A table of an active task: every decay is a run of its own, its row the raw weights; best at 0.99."""
    truth = {"none": (None, 60.0), "m9": (0.9, 73.0), "m99": (0.99, 78.0), "m999": (0.999, 76.0)}
    rows = {
        key: {"label": key, "arm": key, "average": "raw"}
        | ({} if decay is None else {"decay": decay, "against": "none"})
        for key, (decay, _) in truth.items()
    }
    along = ["m9", "m99", "m999"]
    table = spec.Table.model_validate(
        {
            "name": "t", "title": "T", "section": "16.2", "question": "?", "task": "moco", "seeds": {"first": 0, "looks": [8]},
            "metrics": {"top1": {"label": "top-1", "better": "higher"}},
            "arms": {key: [f"ema.decay={decay or 0}"] for key, (decay, _) in truth.items()},
            "rows": rows,
            "claims": [{"type": "optimum", "text": "best inside", "metric": "top1", "along": along, "article": ["m99"]}],
        }
    )  # fmt: skip
    rng = np.random.default_rng(4)
    own = rng.normal(0, 2, 8)
    runs: dict[str, dict[int, Run | None]] = {
        key: {
            seed: Run(
                result(
                    {"raw": {"top1": mean + own[seed] + rng.normal(0, 0.2)}},
                    {"top1": "higher"},
                    task="moco",
                    seed=seed,
                )
            )
            for seed in range(8)
        }
        for key, (_, mean) in truth.items()
    }
    return table, runs


def _png(noise: float, seed: int, side: int = 8, across: int = 8) -> bytes:
    """A small grey grid of rings under noise."""
    rng = np.random.default_rng(seed)
    cells = side * across
    y, x = np.mgrid[0:cells, 0:cells]
    ring = np.abs(np.hypot(y % side - 3.5, x % side - 3.5) - 1.5 - (y // side + x // side) % 3 * 0.6) < 0.8
    grey = np.clip(255 * (ring + noise * rng.normal(size=ring.shape)), 0, 255).astype(np.uint8)
    raw = b"".join(b"\0" + line.tobytes() for line in grey)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", cells, cells, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )
