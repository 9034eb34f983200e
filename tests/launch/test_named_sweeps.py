"""Named sweeps: each turns into the runs that its file says, changed by whatever the user adds."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import yaml

from emabench import cli, compose, plugins
from emabench.config import SCALES, Config
from emabench.errors import UserError
from emabench.launch import sweep, sweep_file

cached = functools.cache(compose.configuration)


def runs(*words: str) -> dict[str, Config]:
    sweeps, rest = sweep_file.split(words)
    return sweep.named(sweep_file.jobs(sweeps, rest, cached), cached)


@pytest.mark.parametrize("name", sorted(plugins.find("conf/sweep")))
def test_every_sweep_of_the_package_is_a_sound_configuration_at_every_scale(name: str) -> None:
    for scale in SCALES:
        planned = runs(f"sweep={name}", "task=lstm", f"scale={scale}")
        assert planned
        assert {config.group for config in planned.values()} == {f"sweep-{name}"}


def test_decays_of_passive_averages_are_one_run_a_seed() -> None:
    planned = runs("sweep=decay", "task=lstm", "scale=small", "seed=0,1")
    assert list(planned) == ["seed=0", "seed=1"]
    for seed, config in enumerate(planned.values()):
        assert (config.seed, config.ema.decay) == (seed, [0.9, 0.99, 0.995, 0.998, 0.999])


def test_decays_of_a_target_network_are_runs_of_their_own() -> None:
    planned = runs("sweep=decay", "task=td3", "scale=small")
    assert [config.ema.decay for config in planned.values()] == [0.9, 0.99, 0.995, 0.998, 0.999]
    assert "ema.decay=0.995" in planned
    with pytest.raises(UserError, match="sweep=warmup: task=td3"):
        runs("sweep=warmup", "task=td3")


def test_ramps_are_averages_of_one_run_at_the_longest_decay() -> None:
    (config,) = runs("sweep=warmup", "task=lstm", "scale=small", "ema.decay=[0.5,0.98]").values()
    profiles = config.profiles()
    for name, shape in (("ramp_linear", "linear"), ("ramp_ratio", "ratio"), ("no_ramp", None)):
        profile = profiles[name]
        assert (profile.decay, profile.debias) == (0.98, False)
        assert (profile.warmup and profile.warmup.shape) == shape
    assert profiles["debiased"].debias


def test_sweeps_are_combined_with_each_other() -> None:
    planned = runs("sweep=[decay,clipping]", "task=lstm", "scale=smoke", "seed=0,1")
    assert list(planned) == [
        f"clip.max_norm={limit} seed={seed}" for seed in (0, 1) for limit in ("null", "0.5")
    ]
    assert all(config.ema.decay == [0.5, 0.9] for config in planned.values())
    assert {config.clip.max_norm for config in planned.values()} == {None, 0.5}


def test_the_batch_size_is_swept_over_the_same_samples() -> None:
    for task, power in (("lstm", 1.0), ("bert", 0.5)):  # SGD; AdamW
        words = (f"task={task}", "scale=small", "ema.decay=[0.9,0.99]")
        own = cached(words)
        planned = runs("sweep=batch_size", *words)
        assert [config.batch_size // own.batch_size for config in planned.values()] == [0, 1, 2, 4]
        for config in planned.values():
            factor = config.batch_size / own.batch_size
            assert config.steps * config.batch_size == own.steps * own.batch_size
            assert config.optimizer.lr == pytest.approx(own.optimizer.lr * factor**power)
            assert config.ema.decay == pytest.approx([0.9**factor, 0.99**factor])


def test_what_the_user_adds_changes_the_sweep() -> None:
    lr = ("sweep=learning_rate", "task=quadratic", "scale=smoke")
    assert [c.optimizer.lr for c in runs(*lr).values()] == [0.05, 0.1, 0.2]
    assert [c.optimizer.lr for c in runs(*lr, "optimizer.lr=0.01").values()] == [0.005, 0.01, 0.02]
    assert [c.optimizer.lr for c in runs(*lr, "optimizer.lr=0.3,0.4").values()] == [0.3, 0.4]
    (config,) = runs("sweep=decay", "task=quadratic", "ema.decay=[0.5,0.7]").values()
    assert config.ema.decay == [0.5, 0.7]
    planned = runs("sweep=schedule", "task=quadratic", "schedule.name=cosine,step", "group=mine")
    assert [config.schedule.milestones for config in planned.values()] == [[], [0.5, 0.75]]
    assert {config.group for config in planned.values()} == {"mine"}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["sweep=cliping"], "sweep=cliping: there is no sweep 'cliping'; did you mean 'clipping'?"),
        (["sweep=decay,clipping"], "sweep=[decay,clipping]"),
        (["sweep=[decay,decay]"], "set the same key"),
        (["sweep=clipping", "clip.max_norm=1"], "clip.max_norm=v1,v2"),
        (["sweep=batch_size"], "0.5 times batch_size=1 is less than 1"),
        (["sweep=schedule", "schedule.name=cosine,square"], "schedule.name=square, only constant, linear"),
        (["sweep=clipping", "scale=huge"], "scale=huge"),
    ],
)
def test_mistakes_are_named(words: list[str], part: str) -> None:
    with pytest.raises(UserError) as error:
        runs("task=quadratic", *words)
    assert part in str(error.value)


def test_without_m_a_sweep_says_how_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep=clipping", "task=quadratic"]) == 2
    assert "emabench -m sweep=clipping" in capsys.readouterr().err


def test_a_sweep_of_averages_is_run_summarised_and_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", "sweep=warmup", "task=quadratic", "scale=smoke", "seed=3", f"results_dir={tmp_path}"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    for name in ("raw", "no_ramp", "debiased", "ramp_power"):
        assert name in printed
    assert f"page    {tmp_path}" in printed
    (config,) = tmp_path.glob("quadratic/*/config.yaml")
    assert yaml.safe_load(config.read_text())["group"] == "sweep-warmup"
    assert cli.main([*words, "--status"]) == 0
    assert "1 finished" in capsys.readouterr().out


def test_a_users_own_sweep_lies_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine" / "conf" / "sweep"
    folder.mkdir(parents=True)
    (folder / "every.yaml").write_text("# How often\nkey: ema.every\none_run: true\nvalues: [1, 2, 5]\n")
    (folder / "noise.yaml").write_text("key: task.noise\nvalues: {small: [x0.5, x2]}\n")
    (folder / "wrong.yaml").write_text("key: task.noise\nvalues: [1]\npoints: {a: {task.noise: 1}}\n")
    (folder / "typo.yaml").write_text("key: task.noize\nvalues: [1, 2]\n")
    with plugins.using([tmp_path / "mine"]):
        (config,) = runs("sweep=every", "task=quadratic", "scale=smoke").values()
        assert {config.profiles()[f"every_{every}"].every for every in (1, 2, 5)} == {1, 2, 5}
        assert [c.task["noise"] for c in runs("sweep=noise", "task=quadratic").values()] == [0.5, 2.0]
        with pytest.raises(UserError, match="says nothing for scale=paper"):
            runs("sweep=noise", "task=quadratic", "scale=paper")
        with pytest.raises(UserError, match=r"wrong\.yaml: takes one of values and points"):
            runs("sweep=wrong", "task=quadratic")
        with pytest.raises(UserError, match=r"sweep=typo: there is no key task\.noize; did you mean 'noise'"):
            runs("sweep=typo", "task=quadratic")
    assert cli.main(["list", f"--path={tmp_path / 'mine'}"]) == 0
    assert "How often" in capsys.readouterr().out
