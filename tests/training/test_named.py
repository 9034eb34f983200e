"""Commands on a run that is there: export and evaluate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from emabench.cli import main
from emabench.config import Config
from emabench.errors import DONE, MISTAKE
from emabench.runs.directory import RunDirectory
from emabench.tasks.quadratic import Options, Quadratic
from emabench.training.start import run
from tests.test_config import config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    asked = config(f"results_dir={tmp_path_factory.mktemp('results')}", "device=cpu", "ema.decay=[0.5,0.9]")
    run(asked)
    return asked


@pytest.mark.parametrize("average", ["raw", "ema_0.9"])
def test_exported_weights_load_into_the_plain_model(trained: Config, tmp_path: Path, average: str) -> None:
    assert main(["export", str(trained.directory()), f"average={average}", f"to={tmp_path}"]) == DONE
    model = Quadratic(Options.model_validate(trained.task))
    model.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    result = RunDirectory(trained.directory()).result()
    assert result
    row = result.row(average)
    assert row
    assert float(model().detach()) == row.metrics["excess_loss"]


def test_evaluate_measures_the_same_again(trained: Config) -> None:
    directory = RunDirectory(trained.directory())
    before = directory.result()
    assert before
    for there in (True, False):
        if not there:
            directory.result_file.unlink()
        assert main(["evaluate", str(directory.path)]) == DONE
        after = directory.result()
        assert after
        assert after.rows == before.rows
        if there:  # it was trained where it was trained
            assert {**after.environment, "evaluated": None} == {**before.environment, "evaluated": None}


def test_evaluate_makes_a_damaged_result_whole(trained: Config) -> None:
    directory = RunDirectory(trained.directory())
    before = directory.result()
    directory.result_file.write_text("{")
    assert main(["evaluate", str(directory.path)]) == DONE
    after = directory.result()
    assert before and after and after.rows == before.rows


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export"], "export RUN"),
        (["export", "RUN"], "of this run raw, ema_0.5, ema_0.9"),
        (["export", "nowhere"], "holds no config.yaml"),
        (["export", "RUN", "average=ema_0.8"], "did you mean"),
        (["export", "RUN", "avrage=raw"], "did you mean 'average'"),
        (["evaluate", "RUN", "x=1"], "no such option"),
    ],
)
def test_mistakes_are_reported(
    trained: Config, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main([str(trained.directory()) if word == "RUN" else word for word in words]) == MISTAKE
    assert message in capsys.readouterr().err
