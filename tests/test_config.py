"""What users rely on when they type overrides: values land, mistakes are named, identities are stable."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from emabench import cli
from emabench.compose import configuration, sweep
from emabench.config import Config, identity
from emabench.errors import UserError


def config(*overrides: str) -> Config:
    return configuration(["task=quadratic", "scale=smoke", *overrides])


def test_values_by_scale_and_overrides() -> None:
    assert configuration(["task=ddpm", "scale=paper"]).steps == 800_000
    assert configuration(["task=ddpm", "scale=paper", "steps=7"]).steps == 7
    assert config("ema.decay=0.99").decays() == [0.99]
    assert config("ema.decay=[0.999,0.9]").decays() == [0.9, 0.999]


def test_averages_are_named_after_their_decay() -> None:
    names = list(config("ema.decay=[0.9,0.9999]", "+averages.swa={kind: mean, start: 3}").profiles())
    assert names == ["ema_0.9", "ema_0.9999", "swa"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("task=quadrtic", "did you mean 'quadratic'"),
        ("tsk=quadratic", "did you mean 'task'"),
        ("ema.dcay=0.9", "did you mean 'decay'"),
        ("+ema.dcay=0.9", "did you mean 'decay'"),
        ("++ema.dcay=0.9", "did you mean 'decay'"),
        ("task.nose=1", "did you mean 'noise'"),
        ("+task.nose=1", "did you mean 'noise'"),
        ("lr=0.1", "did you mean 'optimizer.lr'"),
        ("ema.decay=1.0", "[0, 1)"),
        ("ema.decay=-0.1", "[0, 1)"),
        ("ema.decay=[0.9,0.9]", "twice"),
        ("ema.decay=[]", "empty"),
        ("ema.decay=high", "not a number"),
        ("ema.decay=nan", "[0, 1)"),
        ("ema.every=0", "ema.every=0"),
        ("steps=-5", "steps=-5"),
        ("steps=many", "steps=many"),
        ("steps=2.5", "steps=2.5"),
        ("seed=-1", "seed=-1"),
        ("scale=huge", "smoke, small, paper"),
        ("scale=pper", "did you mean 'paper'"),
        ("clip.max_norm=-1", "clip.max_norm=-1"),
        ("optimizer.name=sdg", "optimizer.name=sdg"),
        ("optimizer.betas=[0.9]", "optimizer.betas"),
        ("precision=fp8", "precision=fp8"),
        ("device=gpu", "device=gpu"),
        ("seed=0,1", "-m"),
        ("+averages.swa={kind: mena}", "mean"),
        ("+averages.raw={kind: mean}", "raw"),
        ("ema.decay=0.9 0.99", "not a number"),
        ("=3", "key=value"),
        ("ema=0.9", "ema"),
        ("optimizer=adam", "optimizer"),
        ("ema.decay.x=1", "decay"),
        ("~steps", "steps"),
        (
            "+averages.late={kind: mean, start: 100000}",
            "averages.late: start=100000, every=1 leave nothing to average of steps",
        ),
        ("averages.late={kind: mean}", "write +averages.late="),
        ("ema.warmup.shape=ratio", "write ema.warmup={shape: …}"),
    ],
)
def test_mistakes_name_the_key_and_the_fix(override: str, expected: str) -> None:
    with pytest.raises(UserError) as error:
        config(override)
    message = str(error.value)
    assert expected in message
    assert len(message.splitlines()) <= 2
    assert "Traceback" not in message


def test_averages_of_every_kind_are_asked_for_by_their_options() -> None:
    profiles = config(
        "+averages.bema={kind: bema, lag: 5}",
        "+averages.tail={kind: tail_blend, window: 15, start: 0.5, weight: [0.3, 0.6]}",
        "+averages.annealed={kind: annealing, schedule: cosine, last: 0.2, every: 2}",
        "+averages.shape={kind: annealing, schedule: [1, 1, 0], last: 0.5}",
        "+averages.twice={kind: ema_of_ema, decay: 0.9, second: 0.8}",
        "+averages.titan={kind: power_ema, half_life_fraction: 0.05}",
    ).profiles()
    kinds = {name: profile.kind for name, profile in profiles.items() if not name.startswith("ema_")}
    assert kinds == {
        "bema": "bema",
        "tail": "ema",
        "tail_0.3": "mixture",
        "tail_0.6": "mixture",
        "annealed": "annealing",
        "shape": "annealing",
        "twice": "ema_of_ema",
        "titan": "power_ema",
    }
    assert profiles["annealed"].bound(steps=100).to_dict()["start"] == 80


def test_active_average_takes_one_decay() -> None:
    with pytest.raises(UserError, match=r"-m ema.decay=0.9,0.99"):
        config("ema.active=true", "ema.decay=[0.9,0.99]")
    assert config("ema.active=true", "ema.decay=0.9").profiles() == {}


def test_no_average_is_a_decay_of_null() -> None:
    assert config("ema.decay=null").profiles() == {}
    with pytest.raises(UserError, match=r"ema\.decay=null: training depends on this average"):
        config("ema.active=true", "ema.decay=null")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=quadratic", "precision=bf16"], "precision=bf16: task quadratic supports only fp32"),
        (["task=td3", "devices=2"], "devices=2: task td3 trains in one process; use devices=1"),
        (["task=bert", "devices=2", "parallel=fsdp"], "parallel=fsdp: task bert supports only ddp"),
        (["task=ddpm", "devices=3"], "batch_size=32: cannot be divided among devices=3; use batch_size=33"),
    ],
)
def test_what_a_task_does_not_support_is_refused_by_the_configuration(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configuration(words)


def test_run_id_is_of_what_decides_the_result() -> None:
    base = config("ema.decay=0.9")
    assert (
        config("ema.decay=[0.9]", "results_dir=/tmp/x", "device=cpu", "log_every=3").run_id() == base.run_id()
    )
    for other in (
        "seed=1",
        "ema.decay=0.91",
        "steps=9",
        "optimizer.lr=0.5",
        "ema.debias=false",
        "task_version=2",
        "channels_last=true",
        "ema.compensated=true",
    ):
        assert config("ema.decay=0.9", other).run_id() != base.run_id(), other


def test_a_key_that_came_later_leaves_older_runs_what_they_were() -> None:
    now = config("ema.decay=0.9", "devices=1", "channels_last=false", "ema.compensated=false")
    before = now.model_dump()
    del before["ema"]["compensated"]
    for key in ("channels_last", "devices", "parallel", "log_weights", "supports", "task_version"):
        del before[key]
    assert Config.model_validate(before).run_id() == now.run_id()
    assert "channels_last" not in identity(now)


def test_sweep_expands_in_order() -> None:
    assert sweep(["steps=1,2", "group=x", "seed=range(0,2)"]) == [
        ["steps=1", "group=x", "seed=0"],
        ["steps=1", "group=x", "seed=1"],
        ["steps=2", "group=x", "seed=0"],
        ["steps=2", "group=x", "seed=1"],
    ]


def test_sweep_takes_every_way_of_naming_values() -> None:
    """Hydra's grammar: its functions, and patterns of the choices of a group."""
    assert sweep(["task=glob([td*,q*])"]) == [["task=quadratic"], ["task=td3"]]
    assert sweep(["seed=sort(3,1,2)"]) == [["seed=1"], ["seed=2"], ["seed=3"]]
    assert sweep(["ema.decay=[0.9,0.99],0.5"]) == [["ema.decay=[0.9,0.99]"], ["ema.decay=0.5"]]
    for word in ("task=glob(x*)", "seed=glob(*)", "optimizer.lr=interval(0,1)", "hydra/sweeper=optuna"):
        with pytest.raises(UserError, match=re.escape(word)):
            sweep([word])


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["export", "--help"], 0),
        (["list"], 0),
        (["--cfg", "task=ddpm"], 0),
        (["ema.dcay=0.9"], 2),
        (["-m", "seed=0,1", "ema.decay=0.9,1.5"], 2),
        (["-m", "sweep=clipping", "task=lstm", "--dry-run"], 0),
        (["sweep=clipping"], 2),
        (["-m", "device=auto,cpu"], 2),
        (["hydra.run.dir=elsewhere"], 2),
        (["launcher=slurm"], 2),
        (["--status"], 2),
        (["ddpm"], 2),
        (["report", "results_dir=/no/such"], 2),
        (["trian"], 2),
        (["--frobnicate"], 2),
    ],
)
def test_quick_answers_import_no_torch(words: list[str], status: int) -> None:
    program = (
        "import sys; from emabench.cli import main; status = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr


def test_every_verb_tells_its_use(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in cli._verbs():
        assert cli.main([verb, "--help"]) == 0
        assert ("emabench [overrides]" if verb == "train" else f"emabench {verb}") in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_is_an_interruption_wherever_it_comes(number: int) -> None:
    """Not only in the training loop: while torch is imported, between the runs of a sweep, in a report."""
    program = "import sys, time; from emabench import cli; cli._dispatch = lambda words: (print(1, flush=True), time.sleep(600)); sys.exit(cli.main([]))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as going:
        assert going.stdout and going.stdout.readline()
        going.send_signal(number)
        assert going.wait(120) == 75


FOLDERS = [
    "/data/my runs (1)", "/data/中文", "/home/müller/runs", "/data/it's", '/data/"x"', "/data/lr=0.1", "/data/a#b", "/data/a&b",
    "/data/[x]", "/data/{y}", "/data/a,b", "/data/${HOME}", "/data/a\\b", "/data/back\\", "/data/ends in space ", "null", "a:b",
    "1", "true", "/data/😀", "/data/%j", "./x/../y", "/data/*?", "/data/\\'", "/data/${oc.env:HOME}", "~missing-user/x", "$x", "@",
]  # fmt: skip


@pytest.mark.parametrize("widths", ["[0.1,0.1]", "[0.05,0.1,0.1000001]"])
def test_a_width_named_twice_is_refused(widths: str) -> None:
    with pytest.raises(UserError, match=r"snapshots\.sigma_rel=.*0\.1 twice; give each once"):
        configuration(["task=quadratic", "scale=smoke", "snapshots.every=5", f"snapshots.sigma_rel={widths}"])


@pytest.mark.parametrize("key", ["results_dir", "data_dir"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_path_is_taken_as_it_is(key: str, folder: str) -> None:
    assert getattr(config(f"{key}={folder}"), key) == folder
    (job,) = sweep([f"{key}={folder}"])
    assert getattr(config(*job), key) == folder  # composed from what a sweep made of it


def test_other_keys_that_are_paths_are_taken_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    corpus = tmp_path / "my corpus, it's (1).txt"
    corpus.write_text("x")
    for given in (corpus, f"~/{corpus.name}"):
        made = configuration(["task=lstm", "scale=smoke", f"task.corpus={given}"])
        assert made.task["corpus"] == str(corpus)
    made = configuration(["task=ddpm", "scale=smoke", "task.inception_weights=~/my weights (1).pth"])
    assert made.task["inception_weights"] == str(tmp_path / "my weights (1).pth")
    missing = configuration(["task=lstm", "scale=smoke", "task.corpus=not there (1).txt"])
    assert missing.task["corpus"] == "not there (1).txt"
    assert sweep(["task=lstm", "task.corpus=topics,x.txt"]) == [
        ["task=lstm", "task.corpus=topics"],
        ["task=lstm", "task.corpus=x.txt"],
    ]


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("EMABENCH_DATA", "~/data")
    assert config("results_dir=~/x").results_dir == f"{tmp_path}/x"
    assert config().data_dir == f"{tmp_path}/data"


def test_whole_numbers_are_written_in_any_way() -> None:
    assert config("steps=1e4").steps == config("steps=10000.0").steps == 10_000
    assert config("steps=1e4").run_id() == config("steps=10000").run_id()
    assert config("task.curvatures=1e1").task["curvatures"] == 10
    with pytest.raises(UserError, match=r"steps=10000\.5"):
        config("steps=10000.5")


@pytest.mark.parametrize("program", [["-O"], []])
def test_assertions_that_are_off_change_nothing(program: list[str]) -> None:
    """Hydra's parser works by assertions with effects."""
    words = [
        "-m",
        "task=quadratic",
        "scale=smoke",
        "seed=range(0,2)",
        "+averages.x={kind: mean}",
        "--dry-run",
    ]
    command = [sys.executable, *program, "-m", "emabench", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "task=quadratic", "seed=[0,1]"], "several runs are written -m seed=0,1"),
        (["seed=[0,1]"], "several runs are written -m seed=0,1"),
        (["~ema"], "every run needs ema"),
        (["~steps"], "every run needs steps"),
        (["--cfg", "hydra"], "--cfg shows all that a run has"),
        (["--cfg=all"], "--cfg shows all that a run has"),
        (["--info"], "option of Hydra's"),
        (["--hydra-help"], "option of Hydra's"),
        (["-cn", "other"], "option of Hydra's"),
    ],
)
def test_hydras_forms_are_answered(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err


def test_hydras_way_of_showing_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--cfg"], ["--cfg", "job"], ["-c", "job"], ["--cfg=job"]):
        assert cli.main([*words, "task=quadratic", "scale=smoke"]) == 0
        assert "steps: 20" in capsys.readouterr().out
