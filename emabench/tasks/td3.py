"""TD3 (Fujimoto, van Hoof, Meger 2018, “Addressing function approximation error in actor-critic methods”).

The article's §6.4: target networks are averages of the ones that are trained, eq. (31), and are said to keep the
values from being overestimated. TD3 has two means against that, slow targets and the smaller of two critics:
`ema.decay` sets the one (the papers' τ is 1 − decay; decay 0 means no target network), `task.twin` the other.

A step of training is one step in the environment and one update. Actions are in [-1, 1] everywhere but at the
environment itself, and all noise is in these units.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from emabench import seeding
from emabench.averaging import EMA, TargetNetwork
from emabench.config import Count, Momentum, NonNegative, Section
from emabench.data.replay import Replay, Transitions
from emabench.errors import UserError, nearest
from emabench.tasks import base
from emabench.tasks.base import Direction

SUGGESTED = ("Pendulum-v1", "InvertedPendulum-v5", "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5")
NEGLIGIBLE = 0.01  # what is left out of a discounted return, as a share of its weights


class Options(Section):
    """The environment, the networks and TD3's own settings."""

    name: Literal["td3"]
    environment: Annotated[str, Field(min_length=1)]  # a gymnasium name; package:Name-v0 imports the package
    hidden: Annotated[list[Count], Field(min_length=1)]  # widths of the hidden layers, of actor and critics
    gamma: Momentum  # discount of a step
    start: Count  # transitions under random actions, before the first update
    replay: Count  # transitions kept
    exploration: NonNegative  # standard deviation of the noise on actions
    smoothing: NonNegative  # and of the noise on the target's actions
    smoothing_clip: NonNegative  # at most so much of it
    policy_delay: Count  # the policy and all targets move every so many updates of the critics
    twin: bool  # critics learn from the smaller of the two targets; false: each from its own
    evaluation_episodes: Count


class Critics(nn.Module):
    """Two critics in one: weights of a layer lie in one tensor, (2, inputs, outputs), drawn as in `nn.Linear`."""

    def __init__(self, inputs: int, hidden: list[int]) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for n_in, n_out in pairwise([inputs, *hidden, 1]):
            bound = n_in**-0.5
            self.weights.append(nn.Parameter(torch.empty(2, n_in, n_out).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(2, 1, n_out).uniform_(-bound, bound)))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Values of both critics: (2, N)."""
        x = torch.cat([observation, action], 1).expand(2, -1, -1)
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x.relu() if number else x, weight)
        return x.squeeze(2)

    def first(self, observation: Tensor, action: Tensor) -> Tensor:
        """Values of the first critic, through which gradients reach the action alone: (N,)."""
        x = torch.cat([observation, action], 1)
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.addmm(bias[0].detach(), x.relu() if number else x, weight[0].detach())
        return x.squeeze(1)


class Agent(nn.Module):
    """Actor and critics: what the target network is a copy of."""

    def __init__(self, observations: int, actions: int, hidden: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise([observations, *hidden]):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        self.actor = nn.Sequential(*layers, nn.Linear(hidden[-1], actions), nn.Tanh())
        self.critics = Critics(observations + actions, hidden)

    def forward(self, observation: Tensor) -> Tensor:
        """The policy: (N, observations) → (N, actions) in [-1, 1]."""
        return self.actor(observation)


class World:
    """An environment with actions in [-1, 1], whose state is what its episode began with and what was done since."""

    def __init__(self, name: str, longer_by: int = 0) -> None:
        """longer_by: steps that episodes go on for after the environment's own limit of time."""
        self.name = name
        self.env, self.limit = _made(name, longer_by)
        box, seen = self.env.action_space, self.env.observation_space
        assert isinstance(box, gym.spaces.Box)
        assert isinstance(seen, gym.spaces.Box)
        self.actions, self.observations = box.shape[0], seen.shape[0]
        self._middle, self._half = (box.high + box.low) / 2, (box.high - box.low) / 2
        self.observation = np.empty(0, np.float32)
        self.done: list[np.ndarray] = []  # actions of this episode

    def reset(self, seed: int) -> None:
        """Begin the episode of that seed."""
        observation, _ = self.env.reset(seed=seed)
        self.observation, self.done = observation.astype(np.float32), []

    def step(self, action: np.ndarray) -> tuple[float, bool, bool]:
        """Do `action`, (actions,) float32. Returns (reward, terminated, is the episode over)."""
        observation, reward, terminated, truncated, _ = self.env.step(self._middle + self._half * action)
        self.observation = observation.astype(np.float32)
        self.done.append(action)
        return float(reward), bool(terminated), bool(terminated or truncated)

    def replayed(self, seed: int, actions: np.ndarray, observation: np.ndarray) -> None:
        """Be where these actions lead in the episode of `seed`. Raises UserError where that is not `observation`."""
        self.reset(seed)
        for action in actions:
            self.step(action)
        if not np.array_equal(self.observation, observation):
            raise UserError(
                f"task.environment={self.name}: went another way when its episode was repeated, so this run cannot "
                "be taken up where it stopped; begin it anew with rerun=true"
            )


def _made(name: str, longer_by: int) -> tuple[gym.Env[Any, Any], int]:
    """The environment and the limit of time of its episodes. Raises UserError where there is none that will do."""
    try:
        env = gym.make(name, disable_env_checker=True)
        limit = env.spec.max_episode_steps if env.spec else None
        if limit and longer_by:
            env = gym.make(name, max_episode_steps=limit + longer_by, disable_env_checker=True)
    except gym.error.DependencyNotInstalled as error:
        extra = "emabench[mujoco]" if "mujoco" in str(error).lower() else "gymnasium[all]"
        mend = f"needs a package that is not installed: pip install '{extra}'"
        raise base.mistake("environment", name, mend) from error
    except ImportError as error:
        raise base.mistake("environment", name, f"cannot be imported ({error})") from error
    except gym.error.Error as error:
        close = nearest(name, gym.registry, otherwise=SUGGESTED)
        raise base.mistake("environment", name, f"gymnasium has no such environment{close}") from error
    box, seen = env.action_space, env.observation_space
    if not isinstance(box, gym.spaces.Box) or len(box.shape) != 1 or not box.is_bounded():
        mend = f"its actions are {box}; TD3 needs a vector of bounded, continuous ones, as Pendulum-v1 has"
        raise base.mistake("environment", name, mend)
    if not isinstance(seen, gym.spaces.Box) or len(seen.shape) != 1:
        raise base.mistake("environment", name, f"its observations are {seen}; a vector is needed")
    if not limit:
        raise base.mistake("environment", name, "has no limit of time; register it with max_episode_steps")
    return env, limit


class Task(base.Task):
    """TD3, measured by the policy's return and by how far its critic is from the returns that really follow.

    return: sum of rewards of an episode, mean. q_bias: value of the first critic minus the discounted return that
    follows, mean over the states of these episodes; above zero it overestimates. q_error: root mean square of that
    difference. Returns go on beyond the episode's limit of time, as values do.
    """

    metrics: ClassVar[Mapping[str, Direction]] = {
        "return": Direction.HIGHER,
        "q_bias": Direction.LOWER,
        "q_error": Direction.LOWER,
    }

    @classmethod
    def check(cls, options: Options, batch_size: int) -> None:
        _made(options.environment, longer_by=0)[0].close()

    def __init__(self, options: Options, context: base.Context) -> None:
        self.options, self.context = options, context
        self.world = World(options.environment)
        self.episode = 0
        # Of a discounted return, what comes after n steps weighs γ^n.
        self.tail = int(np.ceil(np.log(NEGLIGIBLE) / np.log(options.gamma))) if options.gamma else 0
        self.elsewhere = World(options.environment, longer_by=self.tail)  # where the policy is measured
        self.agent = Agent(self.world.observations, self.world.actions, options.hidden).to(context.device)
        assert context.decay is not None, "td3 needs a target network: ema.active=true"
        # A diverging run is found by its loss: a target that raises would make a failure of it.
        self.target = TargetNetwork(self.agent, EMA(decay=context.decay), check_finite=False)
        self.critic_optimizer = context.optimizer(self.agent.critics.parameters())
        self.actor_optimizer = context.optimizer(self.agent.actor.parameters())
        capacity = min(options.replay, options.start + context.steps)
        self.replay = Replay(capacity, self.world.observations, self.world.actions, context.device)

    @property
    def measured_with(self) -> Mapping[str, str]:
        o = self.options
        episodes = f"{o.environment}, {o.evaluation_episodes} episodes"
        values = f"{episodes}, discount {o.gamma:g}"
        return {"return": episodes, "q_bias": values, "q_error": values}

    def averaged(self) -> nn.Module:
        return self.agent

    def compiled(self) -> Sequence[nn.Module]:
        return [self.agent.actor, self.agent.critics]

    # -- training -----------------------------------------------------------------------------------------------

    def train_step(self, step: int) -> Mapping[str, Tensor | float]:
        if step == 0:
            self._explore_at_random()
        draw = self.context.generator("td3", step)
        noise = torch.randn(self.world.actions, generator=draw) * self.options.exploration
        action = self._policy(self.world.observation) + noise.numpy()
        self._experience(action.clip(-1, 1))

        batch = self.replay.sample(self.context.batch_size, draw)
        wanted = self.targets(batch, torch.randn(batch.action.shape, generator=draw))
        with self.context.autocast():
            values = self.agent.critics(batch.observation, batch.action).float()
        loss = (values - wanted).square().mean(1).sum()  # of both critics
        self.critic_optimizer.step(loss, step)
        moves_policy = step % self.options.policy_delay == 0
        if moves_policy:
            with self.context.autocast():
                value = self.agent.critics.first(batch.observation, self.agent.actor(batch.observation))
            self.actor_optimizer.step(-value.float().mean(), step)
        # Without averaging the target is the network itself, also between two moves of the policy.
        if moves_policy or not self.context.decay:
            self.target.update()
        return {"loss": loss.detach(), "value": values.detach().mean()}

    @torch.no_grad()
    def targets(self, batch: Transitions, noise: Tensor) -> Tensor:
        """What the critics are to learn: (N,), or (2, N) where each learns from its own target.

        noise: standard normal, as the actions.
        """
        o, target = self.options, self.target.module
        assert isinstance(target, Agent)
        smoothing = (noise * o.smoothing).clamp(-o.smoothing_clip, o.smoothing_clip)
        with self.context.autocast():
            policy = target.actor(batch.next_observation)
            action = (policy + smoothing.to(policy.device)).clamp(-1, 1)
            values = target.critics(batch.next_observation, action).float()
        return batch.reward + o.gamma * batch.goes_on * (values.amin(0) if o.twin else values)

    def _explore_at_random(self) -> None:
        """The first transitions, before anything is learnt."""
        self._begin_episode()
        draw = self.context.generator("td3 start")
        actions = torch.rand(self.options.start, self.world.actions, generator=draw) * 2 - 1
        for action in actions.numpy():
            self._experience(action)

    def _experience(self, action: np.ndarray) -> None:
        """One step in the environment, and what came of it into the replay."""
        before = self.world.observation
        reward, terminated, over = self.world.step(action)
        self.replay.add(before, action, reward, terminated, self.world.observation)
        if over:
            self.episode += 1
            self._begin_episode()

    def _begin_episode(self) -> None:
        self.world.reset(self._seed("episode", self.episode))

    def _seed(self, purpose: str, episode: int) -> int:
        return seeding.derive(self.context.seed, f"td3 {purpose}", episode)

    @torch.no_grad()
    def _policy(self, observation: np.ndarray) -> np.ndarray:
        """The action for one observation."""
        with self.context.autocast():
            action = self.agent.actor(torch.from_numpy(observation).to(self.context.device)[None])
        return action[0].float().cpu().numpy()

    # -- measuring ----------------------------------------------------------------------------------------------

    def evaluate(self) -> Mapping[str, float]:
        returns, differences = [], []
        for observations, actions, rewards in self._episodes():
            limit = min(len(rewards), self.elsewhere.limit)
            returns.append(float(rewards[:limit].sum()))
            follows = discounted(rewards, self.options.gamma)[:limit]
            with self.context.autocast():
                values = self.agent.critics.first(observations[:limit], actions[:limit]).double().cpu()
            differences.append(values - follows)
        difference = torch.cat(differences)
        return {
            "return": float(np.mean(returns)),
            "q_bias": float(difference.mean()),
            "q_error": float(difference.square().mean().sqrt()),
        }

    def _episodes(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Observations and actions of the policy without noise, on the device, and rewards; longer than the limit.

        The same beginnings for every set of weights, and none that training sees.
        """
        device = self.context.device
        for number in range(self.options.evaluation_episodes):
            self.elsewhere.reset(self._seed("evaluation", number))
            observations, rewards, over = [], [], False
            while not over:
                observations.append(self.elsewhere.observation)
                reward, _, over = self.elsewhere.step(self._policy(self.elsewhere.observation))
                rewards.append(reward)
            seen, done = (torch.from_numpy(np.stack(x)) for x in (observations, self.elsewhere.done))
            yield seen.to(device), done.to(device), torch.tensor(rewards, dtype=torch.float64)

    def references(self) -> Mapping[str, float]:
        """The return of actions at random, in the episodes that `evaluate` begins."""
        draw = self.context.generator("td3 random policy")
        total = 0.0
        for number in range(self.options.evaluation_episodes):
            self.elsewhere.reset(self._seed("evaluation", number))
            for _ in range(self.elsewhere.limit):
                action = torch.rand(self.world.actions, generator=draw) * 2 - 1
                reward, _, over = self.elsewhere.step(action.numpy())
                total += reward
                if over:
                    break
        return {"return_random": total / self.options.evaluation_episodes}

    # -- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The environment is saved as the actions of its episode: done again, they lead to where it is."""
        done = np.array(self.world.done, np.float32).reshape(-1, self.world.actions)
        return {
            "model": self.agent.state_dict(),
            "target": self.target.state_dict(),
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "replay": self.replay.state_dict(),
            "episode": self.episode,
            "actions": torch.from_numpy(done),
            "observation": torch.from_numpy(self.world.observation),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.load_state_dict(state["model"])
        self.target.load_state_dict(state["target"])
        self.actor_optimizer.load_state_dict(state["actor_optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.replay.load_state_dict(state["replay"])
        self.episode = state["episode"]
        seed = self._seed("episode", self.episode)
        self.world.replayed(seed, state["actions"].numpy(), state["observation"].numpy())


def discounted(rewards: Tensor, gamma: float) -> Tensor:
    """The discounted sum of what follows from each step on, that step's own reward included: as `rewards`, (T,)."""
    found, total = torch.empty_like(rewards), 0.0
    for step in reversed(range(len(rewards))):
        total = float(rewards[step]) + gamma * total
        found[step] = total
    return found
