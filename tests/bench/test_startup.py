"""The start-up benchmark: every task is in it, and its page says where a limit is passed and what the rest is."""

from __future__ import annotations

import pytest

from emabench import plugins
from emabench.bench import startup


def test_every_task_is_measured() -> None:
    measured = {word[5:] for command in startup.commands() for word in command.words if command.status == 0
                if word.startswith("task=")}  # fmt: skip
    assert measured == {name for name, item in plugins.find("conf/task").items() if item.source.built_in}


def test_user_time_is_of_the_process_that_was_started(tmp_path) -> None:
    idle = startup._seconds(["-c", "import time; time.sleep(0.3)"], str(tmp_path))
    busy = startup._seconds(["-c", "sum(range(20_000_000))"], str(tmp_path))
    assert idle < 0.2 < busy
    with pytest.raises(RuntimeError, match="ended with 3, not 0"):
        startup._seconds(["-c", "raise SystemExit(3)"], str(tmp_path))


def test_the_page_names_the_libraries_of_what_is_above_its_limit() -> None:
    names = [" ".join(command.words) for command in startup.commands()]
    names += ["import torch", *(f"libraries of {task}" for task in startup.LIBRARIES)]
    seconds = {name: [2.0, 2.2, 1.8] for name in names}
    ratios = {name: [0.01, 0.01, 0.01] for name in names}
    ratios["task=ddpm scale=smoke device=cpu rerun=true"] = [4.0, 4.2, 3.9]
    ratios["libraries of ddpm"] = [3.1, 3.3, 3.0]
    page = startup._page(seconds, ratios, 3)
    assert "| `emabench task=ddpm scale=smoke device=cpu` (trains) | 2.00 | 4.00 | 2.5 | 3.10 |" in page
    assert page.count("3.10") == 1
