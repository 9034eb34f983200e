"""TD3 (Fujimoto, van Hoof, Meger 2018, “Addressing function approximation error in actor-critic methods”).

The article's §6.4: target networks are averages of the trained ones, eq. (31), and are claimed to
prevent overestimation. TD3 has two remedies: slow targets (`ema.decay`; the papers' τ is
1 − decay, and decay 0 means no target network) and the minimum of two critics (`task.twin`).

One training step is one environment step and one update. Actions are in [-1, 1] except inside `Env`, and all noise
is in these units.
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
NEGLIGIBLE = 0.01  # share of the weights of a discounted return that may be truncated


class Options(Section):
    """The environment, the networks and TD3's own settings."""

    name: Literal["td3"]
    environment: Annotated[str, Field(min_length=1)]  # gymnasium id; package:Name-v0 imports the package
    hidden: Annotated[list[Count], Field(min_length=1)]  # widths of the hidden layers, of actor and critics
    gamma: Momentum  # discount per step
    start: Count  # learning_starts: transitions with random actions, before the first update
    replay: Count  # capacity of the replay buffer, transitions
    exploration: NonNegative  # exploration_noise: standard deviation of the noise on actions
    smoothing: NonNegative  # policy_noise: standard deviation of the noise on target actions
    smoothing_clip: NonNegative  # noise_clip: that noise is clipped to ± this
    policy_delay: Count  # critic updates per update of the policy and the targets
    twin: bool  # both critics learn from the minimum of the two targets; false: each from its own
    evaluation_episodes: Count


class Critics(nn.Module):
    """Q1 and Q2 in one module: a layer's weights are one tensor (2, inputs, outputs), initialised as in `nn.Linear`."""

    def __init__(self, inputs: int, hidden: list[int]) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for n_in, n_out in pairwise([inputs, *hidden, 1]):
            bound = n_in**-0.5
            self.weights.append(nn.Parameter(torch.empty(2, n_in, n_out).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(2, 1, n_out).uniform_(-bound, bound)))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Q1 and Q2: (2, N)."""
        x = torch.cat([observation, action], 1).expand(2, -1, -1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x.relu() if layer else x, weight)
        return x.squeeze(2)

    def first(self, observation: Tensor, action: Tensor) -> Tensor:
        """Q1: (N,). Gradients reach the action, not the critic."""
        x = torch.cat([observation, action], 1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.addmm(bias[0].detach(), x.relu() if layer else x, weight[0].detach())
        return x.squeeze(1)


class Agent(nn.Module):
    """Actor and critics; the target network is a copy of it."""

    def __init__(self, observation_dim: int, action_dim: int, hidden: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise([observation_dim, *hidden]):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        self.actor = nn.Sequential(*layers, nn.Linear(hidden[-1], action_dim), nn.Tanh())
        self.critics = Critics(observation_dim + action_dim, hidden)

    def forward(self, observation: Tensor) -> Tensor:
        """The policy: (N, observation_dim) → (N, action_dim) in [-1, 1]."""
        return self.actor(observation)


class Env:
    """An environment with actions in [-1, 1]. Its state is the seed of its episode and the actions since its reset."""

    def __init__(self, name: str, extra_steps: int = 0) -> None:
        """extra_steps: steps that episodes continue for after the environment's own time limit."""
        self.name = name
        self.env, self.limit = _make_env(name, extra_steps)
        actions, observations = self.env.action_space, self.env.observation_space
        assert isinstance(actions, gym.spaces.Box)  # `_make_env` refuses any other
        assert isinstance(observations, gym.spaces.Box)
        self.action_dim, self.observation_dim = actions.shape[0], observations.shape[0]
        self._bias, self._scale = (actions.high + actions.low) / 2, (actions.high - actions.low) / 2
        self.observation = np.empty(0, np.float32)
        self.actions: list[np.ndarray] = []  # of this episode

    def reset(self, seed: int) -> None:
        """Begin the episode of a seed."""
        observation, _ = self.env.reset(seed=seed)
        self.observation, self.actions = observation.astype(np.float32), []

    def step(self, action: np.ndarray) -> tuple[float, bool, bool]:
        """Take `action`, float32 (action_dim,). Returns (reward, terminated, terminated or truncated)."""
        observation, reward, terminated, truncated, _ = self.env.step(self._bias + self._scale * action)
        self.observation = observation.astype(np.float32)
        self.actions.append(action)
        return float(reward), bool(terminated), bool(terminated or truncated)

    def replay(self, seed: int, actions: np.ndarray, observation: np.ndarray) -> None:
        """Repeat the actions of the episode of `seed`. Raises UserError if they do not lead to `observation`."""
        self.reset(seed)
        for action in actions:
            self.step(action)
        if not np.array_equal(self.observation, observation):
            raise UserError(
                f"task.environment={self.name}: is not reproducible: the same actions led elsewhere, so this run cannot "
                "be resumed; start over with rerun=true"
            )


def _make_env(name: str, extra_steps: int) -> tuple[gym.Env[Any, Any], int]:
    """The environment and the time limit of its episodes. Raises UserError if TD3 cannot be trained on it."""
    try:
        env = gym.make(name, disable_env_checker=True)
        limit = env.spec.max_episode_steps if env.spec else None
        if limit and extra_steps:
            env = gym.make(name, max_episode_steps=limit + extra_steps, disable_env_checker=True)
    except gym.error.DependencyNotInstalled as error:
        extra = "emabench[mujoco]" if "mujoco" in str(error).lower() else "gymnasium[all]"
        fix = f"needs a package that is not installed: pip install '{extra}'"
        raise base.option_error("environment", name, fix) from error
    except ImportError as error:
        raise base.option_error("environment", name, f"cannot be imported ({error})") from error
    except gym.error.Error as error:
        suggestion = nearest(name, gym.registry, otherwise=SUGGESTED)
        raise base.option_error(
            "environment", name, f"gymnasium has no such environment{suggestion}"
        ) from error
    actions, observations = env.action_space, env.observation_space
    if not isinstance(actions, gym.spaces.Box) or len(actions.shape) != 1 or not actions.is_bounded():
        fix = f"its actions are {actions}; TD3 needs a vector of bounded, continuous ones, as Pendulum-v1 has"
        raise base.option_error("environment", name, fix)
    if not isinstance(observations, gym.spaces.Box) or len(observations.shape) != 1:
        raise base.option_error(
            "environment", name, f"its observations are {observations}; a vector is needed"
        )
    if not limit:
        raise base.option_error("environment", name, "has no time limit; register it with max_episode_steps")
    return env, limit


class Task(base.Task):
    """TD3, measured by the policy's return and by the error of its critic.

    return: undiscounted sum of rewards of an episode, mean over episodes. q_bias: Q1 minus the discounted return that
    was then obtained, mean over the states of these episodes; positive means overestimation. q_error: root mean
    square of that difference. Discounted returns include rewards after the time limit, as values do.
    """

    metrics: ClassVar[Mapping[str, Direction]] = {
        "return": Direction.HIGHER,
        "q_bias": Direction.LOWER,
        "q_error": Direction.LOWER,
    }

    @classmethod
    def check(cls, options: Options, batch_size: int) -> None:
        _make_env(options.environment, extra_steps=0)[0].close()

    @classmethod
    def imports(cls, options: Options) -> Mapping[str, str]:
        return {"environment": options.environment} if ":" in options.environment else {}

    def __init__(self, options: Options, context: base.Context) -> None:
        self.options, self.context = options, context
        self.train_env = Env(options.environment)
        self.episode = 0
        # Rewards after n steps have weight γ^n in a discounted return.
        self.tail = int(np.ceil(np.log(NEGLIGIBLE) / np.log(options.gamma))) if options.gamma else 0
        self.eval_env = Env(options.environment, extra_steps=self.tail)  # where the policy is evaluated
        self.agent = Agent(self.train_env.observation_dim, self.train_env.action_dim, options.hidden).to(
            context.device
        )
        if context.decay is None:
            raise UserError("ema.active=false: task td3 trains with target networks; leave it true")
        # A diverging run is detected by its loss; a target that raises would turn it into a failure.
        self.target = TargetNetwork(self.agent, EMA(decay=context.decay), check_finite=False)
        self.critic_optimizer = context.optimizer(self.agent.critics.parameters())
        self.actor_optimizer = context.optimizer(self.agent.actor.parameters())
        capacity = min(options.replay, options.start + context.steps)
        self.replay = Replay(
            capacity, self.train_env.observation_dim, self.train_env.action_dim, context.device
        )

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

    def train_step(self, batch: None, step: int) -> Mapping[str, Tensor | float]:
        if step == 0:
            self._random_exploration()
        rng = self.context.generator("td3", step)
        noise = torch.randn(self.train_env.action_dim, generator=rng) * self.options.exploration
        action = self._policy(self.train_env.observation) + noise.numpy()
        self._env_step(action.clip(-1, 1))

        transitions = self.replay.sample(self.context.batch_size, rng)
        target_q = self.target_q(transitions, torch.randn(transitions.action.shape, generator=rng))
        q = self.agent.critics(transitions.observation, transitions.action).float()
        loss = (q - target_q).square().mean(1).sum()  # of both critics
        self.critic_optimizer.step(loss, step)
        update_policy = step % self.options.policy_delay == 0
        if update_policy:
            observation = transitions.observation
            q_actor = self.agent.critics.first(observation, self.agent.actor(observation))
            self.actor_optimizer.step(-q_actor.float().mean(), step)
        # With decay 0 the target is the network itself, also between two policy updates.
        if update_policy or not self.context.decay:
            self.target.update()
        return {"loss": loss.detach(), "value": q.detach().mean()}

    @torch.no_grad()
    def target_q(self, batch: Transitions, noise: Tensor) -> Tensor:
        """r + γ · not_done · min(Q1', Q2') at the smoothed target action: (N,); (2, N) without `twin`.

        noise: standard normal, of the shape of the actions.
        """
        o, target = self.options, self.target.module
        assert isinstance(target, Agent)
        smoothing = (noise * o.smoothing).clamp(-o.smoothing_clip, o.smoothing_clip)
        next_action = target.actor(batch.next_observation)
        next_action = (next_action + smoothing.to(next_action.device)).clamp(-1, 1)
        q = target.critics(batch.next_observation, next_action).float()
        return batch.reward + o.gamma * batch.not_done * (q.amin(0) if o.twin else q)

    def _random_exploration(self) -> None:
        """The first transitions, before the first update."""
        self._reset()
        rng = self.context.generator("td3 start")
        actions = torch.rand(self.options.start, self.train_env.action_dim, generator=rng) * 2 - 1
        for action in actions.numpy():
            self._env_step(action)

    def _env_step(self, action: np.ndarray) -> None:
        """Take one step in the environment and add the transition to the replay buffer."""
        observation = self.train_env.observation
        reward, terminated, done = self.train_env.step(action)
        self.replay.add(observation, action, reward, terminated, self.train_env.observation)
        if done:
            self.episode += 1
            self._reset()

    def _reset(self) -> None:
        self.train_env.reset(self._seed("episode", self.episode))

    def _seed(self, purpose: str, episode: int) -> int:
        return seeding.derive(self.context.seed, f"td3 {purpose}", episode)

    @torch.no_grad()
    def _policy(self, observation: np.ndarray) -> np.ndarray:
        """The action for one observation, without noise."""
        action = self.agent.actor(torch.from_numpy(observation).to(self.context.device)[None])
        return action[0].float().cpu().numpy()

    # -- evaluation ---------------------------------------------------------------------------------------------

    def evaluate(self) -> Mapping[str, float]:
        returns, differences = [], []
        for observations, actions, rewards in self._episodes():
            limit = min(len(rewards), self.eval_env.limit)
            returns.append(float(rewards[:limit].sum()))
            q_true = discounted(rewards, self.options.gamma)[:limit]
            q = self.agent.critics.first(observations[:limit], actions[:limit]).double().cpu()
            differences.append(q - q_true)
        difference = torch.cat(differences)
        return {
            "return": float(np.mean(returns)),
            "q_bias": float(difference.mean()),
            "q_error": float(difference.square().mean().sqrt()),
        }

    def _episodes(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Observations and actions of the policy without noise, on the device, and rewards, beyond the time limit.

        Every set of weights starts from the same states, none of which training sees.
        """
        device = self.context.device
        for episode in range(self.options.evaluation_episodes):
            self.eval_env.reset(self._seed("evaluation", episode))
            observations, rewards, done = [], [], False
            while not done:
                observations.append(self.eval_env.observation)
                reward, _, done = self.eval_env.step(self._policy(self.eval_env.observation))
                rewards.append(reward)
            x = torch.from_numpy(np.stack(observations)).to(device)
            actions = torch.from_numpy(np.stack(self.eval_env.actions)).to(device)
            yield x, actions, torch.tensor(rewards, dtype=torch.float64)

    def references(self) -> Mapping[str, float]:
        """The return of random actions, in the episodes of `evaluate`."""
        rng = self.context.generator("td3 random policy")
        total = 0.0
        for episode in range(self.options.evaluation_episodes):
            self.eval_env.reset(self._seed("evaluation", episode))
            for _ in range(self.eval_env.limit):
                action = torch.rand(self.train_env.action_dim, generator=rng) * 2 - 1
                reward, _, done = self.eval_env.step(action.numpy())
                total += reward
                if done:
                    break
        return {"return_random": total / self.options.evaluation_episodes}

    # -- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The environment is saved as the actions of its episode, which are repeated on resume."""
        actions = np.array(self.train_env.actions, np.float32).reshape(-1, self.train_env.action_dim)
        return {
            "model": self.agent.state_dict(),
            "target": self.target.state_dict(),
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "replay": self.replay.state_dict(),
            "episode": self.episode,
            "actions": torch.from_numpy(actions),
            "observation": torch.from_numpy(self.train_env.observation),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.load_state_dict(state["model"])
        self.target.load_state_dict(state["target"])
        self.actor_optimizer.load_state_dict(state["actor_optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.replay.load_state_dict(state["replay"])
        self.episode = state["episode"]
        seed = self._seed("episode", self.episode)
        self.train_env.replay(seed, state["actions"].numpy(), state["observation"].numpy())


def discounted(rewards: Tensor, gamma: float) -> Tensor:
    """The discounted return from each step on, its own reward included: (T,), as `rewards`."""
    returns, total = torch.empty_like(rewards), 0.0
    for step in reversed(range(len(rewards))):
        total = float(rewards[step]) + gamma * total
        returns[step] = total
    return returns
