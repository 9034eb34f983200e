"""The engine by itself: it loads torch and numpy, and nothing of the command line or its libraries."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

LOADED = """
import sys
import numpy, torch, torch.distributed, torch.optim.swa_utils  # what torch loads of its own
before = set(sys.modules)
from emabench.averaging import *
import emabench.averaging as engine
for name in engine.__all__:
    getattr(engine, name)
model = torch.nn.Linear(2, 2)
averager = engine.Averager(model, engine.EMA(decay=0.9))
averager.update()
with averager.applied():
    averager.model(torch.ones(1, 2))
averager.save("state.safetensors")
averager.load("state.safetensors")
averager.load_foreign(averager.export())
for name in sorted(set(sys.modules) - before):
    print(name)
"""


def test_nothing_else_is_loaded(tmp_path):
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", LOADED],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = [name for name in result.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names]
    strangers = [
        name
        for name in loaded
        if name not in ("emabench", "emabench.averaging")
        and not name.startswith(("emabench.averaging.", "torch.", "numpy."))
    ]
    assert "emabench.averaging.averager" in loaded
    assert strangers == []


def test_the_command_line_says_what_to_install(tmp_path):
    without = "import sys; sys.modules['hydra'] = sys.modules['omegaconf'] = sys.modules['pydantic'] = None\n"
    run = "from emabench.cli import main; sys.exit(main(['task=quadratic', 'scale=smoke']))"
    result = subprocess.run(
        [sys.executable, "-c", without + run],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "pip install 'emabench[bench]'" in result.stderr
