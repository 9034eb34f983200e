"""TD3 against a plain implementation of it, and on environments where everything is known."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from emabench.compose import configuration
from emabench.data.replay import Transitions
from emabench.errors import UserError
from emabench.tasks import td3
from emabench.tasks.td3 import Env, Task, discounted
from emabench.training.build import build_task
from emabench.training.progress import Progress

CPU = torch.device("cpu")


class Walk(gym.Env[np.ndarray, np.ndarray]):
    """Where one is, is what the actions in [0, 4] add up to; a step gains `reward`, and `ends` steps are terminal."""

    def __init__(self, ends: int | None = None, reward: float = 1.0, chance: bool = False) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gym.spaces.Box(0.0, 4.0, (1,), np.float32)
        self.ends, self.reward, self.chance = ends, reward, chance
        self.steps, self.place = 0, 0.0
        self.actions: list[float] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.place = 0, float(self.np_random.normal())
        return self._seen(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.actions.append(float(action[0]))
        self.place += float(action[0]) + float(self.np_random.normal())
        if self.chance:
            self.place += np.random.default_rng().normal()
        return self._seen(), self.reward, self.steps == self.ends, False, {}

    def _seen(self) -> np.ndarray:
        return np.array([self.place / 10, self.steps / 10])


class Guess(Walk):
    """One step an episode, best done with 3: (a − 3)² is lost."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(2), -float((action[0] - 3) ** 2), True, False, {}


class Odd(Walk):
    """Sees a picture, not a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(0, 1, (4, 4), np.float32)


class Unbounded(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)


@pytest.fixture(scope="module", autouse=True)
def registered_envs() -> Iterator[None]:
    made = {
        "test/Walk-v0": ({"entry_point": Walk, "max_episode_steps": 7}),
        "test/Ends-v0": ({"entry_point": Walk, "max_episode_steps": 7, "kwargs": {"ends": 4}}),
        "test/Chance-v0": ({"entry_point": Walk, "max_episode_steps": 7, "kwargs": {"chance": True}}),
        "test/Guess-v0": ({"entry_point": Guess, "max_episode_steps": 7}),
        "test/Odd-v0": ({"entry_point": Odd, "max_episode_steps": 7}),
        "test/Unbounded-v0": ({"entry_point": Unbounded, "max_episode_steps": 7}),
        "test/Endless-v0": ({"entry_point": Walk}),
    }
    for name, how in made.items():
        gym.register(name, **how)
    yield
    for name in made:
        gym.registry.pop(name)


def make(tmp_path: Path, *overrides: str) -> Task:
    config = configuration(["task=td3", "scale=smoke", f"results_dir={tmp_path}", *overrides])
    task = build_task(config, CPU, Progress("test", config.steps))
    assert isinstance(task, Task)
    return task


def walk(tmp_path: Path, *overrides: str, name: str = "Walk") -> Task:
    return make(tmp_path, f"task.environment=test/{name}-v0", *overrides)


# -- the update -------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """TD3 as its authors wrote it: three networks of `nn.Linear`."""

    def __init__(self, agent: td3.Agent) -> None:
        super().__init__()
        self.actor = nn.ModuleList(m for m in copy.deepcopy(agent.actor) if isinstance(m, nn.Linear))
        self.q = nn.ModuleList()
        for which in range(2):
            layers = nn.ModuleList()
            for weight, bias in zip(agent.critics.weights, agent.critics.biases, strict=True):
                layer = nn.Linear(weight.shape[1], weight.shape[2])
                layer.weight.data = weight.detach()[which].T.clone()
                layer.bias.data = bias.detach()[which, 0].clone()
                layers.append(layer)
            self.q.append(layers)

    def act(self, x: Tensor) -> Tensor:
        return torch.tanh(_through(self.actor, x))

    def value(self, which: int, seen: Tensor, done: Tensor) -> Tensor:
        return _through(self.q[which], torch.cat([seen, done], 1))[:, 0]


def _through(layers: nn.Module, x: Tensor) -> Tensor:
    *hidden, last = layers.children()
    for layer in hidden:
        x = F.relu(layer(x))
    return last(x)


@pytest.mark.parametrize("twin", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_updates_are_those_of_a_plain_implementation(
    tmp_path: Path, twin: bool, decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = walk(
        tmp_path, f"ema.decay={decay}", f"task.twin={str(twin).lower()}", "task.smoothing=0.6", name="Ends"
    )
    plain, target = Plain(task.agent), Plain(task.agent)
    critics = torch.optim.Adam(plain.q.parameters(), lr=1e-3)
    actor = torch.optim.Adam(plain.actor.parameters(), lr=1e-3)
    used: list[tuple[Transitions, Tensor]] = []
    inner = task.target_q
    monkeypatch.setattr(
        task, "target_q", lambda batch, noise: used.append((batch, noise)) or inner(batch, noise)
    )
    for step in range(9):
        logged = task.train_step(task.batch(step), step)
        b, noise = used[step]
        with torch.no_grad():
            action = (target.act(b.next_observation) + (0.6 * noise).clamp(-0.5, 0.5)).clamp(-1, 1)
            both = [target.value(i, b.next_observation, action) for i in range(2)]
            if twin:
                both = [torch.minimum(*both)] * 2
            wanted = [b.reward + 0.99 * b.not_done * q for q in both]
        loss = sum(F.mse_loss(plain.value(i, b.observation, b.action), wanted[i]) for i in range(2))
        assert isinstance(loss, Tensor)
        assert float(logged["loss"]) == pytest.approx(float(loss.detach()), rel=1e-4)
        critics.zero_grad()
        loss.backward()
        critics.step()
        if step % 2 == 0:
            actor.zero_grad()
            (-plain.value(0, b.observation, plain.act(b.observation)).mean()).backward()
            actor.step()
        if step % 2 == 0 or not decay:
            for kept, new in zip(target.parameters(), plain.parameters(), strict=True):
                kept.data.mul_(decay).add_(new.data, alpha=1 - decay)
    assert 0 < float(b.not_done.mean()) < 1  # terminal states were among them
    assert isinstance(task.target.module, td3.Agent)
    for own, expected in ((task.agent, plain), (task.target.module, target)):
        for (name, mine), theirs in zip(Plain(own).named_parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg=name)


def test_the_target_is_the_average_that_the_decay_says(tmp_path: Path) -> None:
    task = walk(tmp_path, "ema.decay=0.8")
    for step in range(4):
        before = [p.clone() for p in task.target.module.parameters()]
        task.train_step(task.batch(step), step)
        for was, now, live in zip(
            before, task.target.module.parameters(), task.agent.parameters(), strict=True
        ):
            expected = 0.8 * was + 0.2 * live if step % 2 == 0 else was
            torch.testing.assert_close(now, expected)


def test_decay_0_is_no_target_network(tmp_path: Path) -> None:
    task = walk(tmp_path, "ema.decay=0")
    for step in range(4):
        task.train_step(task.batch(step), step)
        for target, live in zip(task.target.module.parameters(), task.agent.parameters(), strict=True):
            assert torch.equal(target, live)


def test_it_learns(tmp_path: Path) -> None:
    task = walk(tmp_path, "task.gamma=0", "optimizer.lr=0.01", name="Guess")
    for step in range(400):
        task.train_step(task.batch(step), step)
    with torch.no_grad():
        found = task.evaluate()
        assert found["return"] > -0.05  # with actions at random, −4.3
        assert abs(found["q_bias"]) < 0.3
    assert task.references()["return_random"] < -0.3


# -- the environment --------------------------------------------------------------------------------------------


def test_actions_are_those_of_the_environment() -> None:
    env = Env("test/Walk-v0")
    env.reset(0)
    for action in (-1.0, 0.0, 1.0):
        env.step(np.array([action], np.float32))
    assert env.env.unwrapped.actions == [0.0, 2.0, 4.0]  # type: ignore[attr-defined]


def test_steps_at_random_come_first_and_are_kept(tmp_path: Path) -> None:
    task = walk(tmp_path, "task.start=40")
    task.train_step(task.batch(0), 0)
    assert task.replay.added == 41
    actions = task.replay.rows[:40, 2]
    assert actions.min() < -0.8
    assert actions.max() > 0.8
    assert task.episode == 41 // 7


def test_exploration_is_noise_on_the_policy(tmp_path: Path) -> None:
    quiet = walk(tmp_path, "task.exploration=0")
    quiet.train_step(quiet.batch(0), 0)
    row = quiet.replay.rows[quiet.options.start % len(quiet.replay)]
    fresh = walk(tmp_path, "task.exploration=0")  # the same seed: the same policy, not yet trained
    with torch.no_grad():
        assert float(row[2]) == pytest.approx(float(fresh.agent(row[None, :2])), abs=1e-6)


def test_resumed_in_the_middle_of_an_episode(tmp_path: Path) -> None:
    task = make(tmp_path, "task.start=30", "steps=300", "task.replay=200")
    for step in range(195):  # 225 steps in the environment: 25 into the second episode
        task.train_step(task.batch(step), step)
    file = io.BytesIO()
    torch.save(task.state_dict(), file)
    file.seek(0)
    again = make(tmp_path, "task.start=30", "steps=300", "task.replay=200")
    again.load_state_dict(torch.load(file, weights_only=True))
    assert (again.episode, len(again.train_env.actions)) == (1, 25)
    for step in range(195, 260):
        assert float(again.train_step(again.batch(step), step)["loss"]) == float(
            task.train_step(task.batch(step), step)["loss"]
        )
    assert torch.equal(again.replay.rows, task.replay.rows)
    assert np.array_equal(again.train_env.observation, task.train_env.observation)


def test_an_environment_that_cannot_be_repeated_is_reported(tmp_path: Path) -> None:
    task = walk(tmp_path, name="Chance")
    task.train_step(task.batch(0), 0)
    assert task.train_env.actions
    with pytest.raises(UserError, match=r"task\.environment=test/Chance-v0: .*rerun=true"):
        walk(tmp_path, name="Chance").load_state_dict(task.state_dict())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Pendulm-v1", "did you mean 'Pendulum-v1'"),
        ("Qwertyuiop-v0", "known: .*Pendulum-v1"),
        ("no_such_package:Thing-v0", "cannot be imported"),
        ("CartPole-v1", r"actions are Discrete\(2\).*continuous"),
        ("test/Odd-v0", "a vector is needed"),
        ("test/Unbounded-v0", "bounded"),
        ("test/Endless-v0", "max_episode_steps"),
        ("!", "no such environment"),
    ],
)
def test_an_environment_that_will_not_do_is_reported(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make(tmp_path, f"task.environment='{name}'")
    assert str(caught.value).startswith(f"task.environment={name}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise gym.error.DependencyNotInstalled("MuJoCo is not installed, run `pip install gymnasium[mujoco]`")

    monkeypatch.setattr(gym, "make", missing)
    with pytest.raises(UserError, match=r"HalfCheetah-v5: needs .* pip install 'emabench\[mujoco\]'"):
        make(tmp_path, "task.environment=HalfCheetah-v5")


# -- measuring --------------------------------------------------------------------------------------------------


def zero_critics(task: Task) -> None:
    for parameter in task.agent.critics.parameters():
        parameter.data.zero_()


def test_values_are_set_against_what_follows_beyond_the_limit_of_time(tmp_path: Path) -> None:
    """A reward of 1 a step for ever is worth 1/(1 − γ), also where the episode is cut off."""
    task = walk(tmp_path, "task.gamma=0.9", "task.evaluation_episodes=3")
    zero_critics(task)
    task.agent.critics.biases[-1].data.fill_(12.0)
    with torch.no_grad():
        found = task.evaluate()
    assert found["return"] == 7
    assert found["q_bias"] == pytest.approx(2.0, abs=0.1)  # 12 − 10, but for the 1 % that is left out
    assert found["q_error"] == pytest.approx(2.0, abs=0.1)


def test_nothing_follows_a_terminal_state(tmp_path: Path) -> None:
    task = walk(tmp_path, "task.gamma=0.5", name="Ends")
    zero_critics(task)
    with torch.no_grad():
        found = task.evaluate()
    follows = np.array([1.875, 1.75, 1.5, 1.0])
    assert found["return"] == 4
    assert found["q_bias"] == pytest.approx(-follows.mean())
    assert found["q_error"] == pytest.approx(np.sqrt((follows**2).mean()))


def test_discounted_is_the_sum_over_what_comes_after() -> None:
    rewards = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    assert discounted(rewards, 0.5).tolist() == [1 - 1 + 0.75, -2 + 1.5, 3]


def test_measuring_leaves_training_alone_and_repeats_itself(tmp_path: Path) -> None:
    task = make(tmp_path, "task.start=30")
    task.train_step(task.batch(0), 0)
    before, rows = task.train_env.observation.copy(), task.replay.rows.clone()
    with torch.no_grad():
        first, second = task.evaluate(), task.evaluate()
    assert first == second
    assert np.array_equal(task.train_env.observation, before)
    assert torch.equal(task.replay.rows, rows)


def test_it_is_measured_from_beginnings_that_training_does_not_see(tmp_path: Path) -> None:
    task = make(tmp_path)
    trained, measured = ([task._seed(what, n) for n in range(50)] for what in ("episode", "evaluation"))
    assert not set(trained) & set(measured)
