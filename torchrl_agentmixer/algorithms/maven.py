"""MAVEN: QMIX whose agents share a latent for an episode, drawn by a hierarchical policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import nn
from torch.distributions import Categorical
from torch.nn.functional import cross_entropy, one_hot
from torchrl.envs import EnvBase
from torchrl.modules import QValueModule
from torchrl.objectives import QMixerLoss, SoftUpdate, ValueEstimators

from torchrl_agentmixer import distributed
from torchrl_agentmixer.algorithms.descent import descend, load_optimizer
from torchrl_agentmixer.algorithms.replay import TransitionReplay, transition_keys
from torchrl_agentmixer.algorithms.schedules import Schedule, as_schedule
from torchrl_agentmixer.groups import AgentGroup, agent_groups, only_group, state_dim
from torchrl_agentmixer.modules import LatentMixer, LatentUtilities
from torchrl_agentmixer.modules.initialization import orthogonal_
from torchrl_agentmixer.modules.mlp import layer_norm_mlp
from torchrl_agentmixer.policies.latent import LatentPolicy, masked
from torchrl_agentmixer.policies.product import Sampled

_EPSILON = Schedule(0.3, 0.05, until=0.5)


@dataclass(kw_only=True)
class MAVENConfig:
    """Hyperparameters of MAVEN (`arXiv 1910.07483 <https://arxiv.org/abs/1910.07483>`_).

    Args:
        lr: learning rate of utilities, mixer and discriminator.
        lr_latent: learning rate of the hierarchical policy.
        epochs: how often the method trains on as many transitions as a batch has; and steps of the
            hierarchical policy on the episodes that ended in it.
        num_minibatches: a minibatch, drawn from the replay buffer, is a batch's frames over this;
            ``epochs * num_minibatches`` gradient steps follow each batch.
        num_latents: values of the latent.
        epsilon: share of exploring actions in collection: a number or a :class:`Schedule`.
        information_coeff: weight of the mutual-information bonus.
        temperature: of the Boltzmann policies that the discriminator reads, in units of utility.
        latent_entropy_coeff: weight of the hierarchical policy's entropy bonus.
        clip_epsilon: clipping range of the hierarchical policy's ratio.
        replay_size: transitions in the replay buffer, which is on the environment's device.
        target_rate: share of the way to the trained parameters that the target's go in each step.
        gamma: discount factor.
        max_grad_norm: bound on the norm of the gradient.
        adam_eps: epsilon of Adam.
        share_params: one utility network for all agents, or one each.
        actor_hidden: widths of the utilities' hidden layers.
        mixer_dim: width of the mixer.
        discriminator_hidden: widths of the discriminator's hidden layers.
        latent_hidden: widths of the hierarchical policy's hidden layers.
        input_norm: LayerNorm on the inputs of utilities, discriminator and hierarchical policy.
        memory_dim: 0; the utilities have no memory.

    Raises:
        ValueError: for a value out of its range, or ``memory_dim`` other than 0.
    """

    lr: float = 1e-3
    lr_latent: float = 5e-3
    epochs: int = 5
    num_minibatches: int = 40
    num_latents: int = 8
    epsilon: float | Schedule | Mapping[str, Any] = _EPSILON
    information_coeff: float = 1e-3
    temperature: float = 1.0
    latent_entropy_coeff: float = 0.01
    clip_epsilon: float = 0.2
    replay_size: int = 50_000
    target_rate: float = 0.01
    gamma: float = 0.99
    max_grad_norm: float = 10.0
    adam_eps: float = 1e-5
    share_params: bool = False
    actor_hidden: tuple[int, ...] = (64,)
    mixer_dim: int = 32
    discriminator_hidden: tuple[int, ...] = (64,)
    latent_hidden: tuple[int, ...] = (64,)
    input_norm: bool = False
    memory_dim: int = 0

    def __post_init__(self) -> None:
        for name in ("actor_hidden", "discriminator_hidden", "latent_hidden"):
            setattr(self, name, tuple(getattr(self, name)))
        if isinstance(self.epsilon, Mapping):
            self.epsilon = as_schedule(self.epsilon)
        ends = as_schedule(self.epsilon)
        if not (0 <= ends.start <= 1 and 0 <= ends.end <= 1):
            raise ValueError(f"MAVENConfig: expected `epsilon` in [0, 1], got {self.epsilon}.")
        for name in ("epochs", "num_minibatches", "num_latents", "replay_size", "mixer_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"MAVENConfig: expected `{name}` >= 1, got {getattr(self, name)}.")
        for name in ("temperature", "target_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"MAVENConfig: expected `{name}` > 0, got {getattr(self, name)}.")
        if self.target_rate > 1:
            raise ValueError(f"MAVENConfig: expected `target_rate` <= 1, got {self.target_rate}.")
        if self.memory_dim != 0:
            raise ValueError(
                f"MAVENConfig: expected `memory_dim` 0, got {self.memory_dim}: replay holds single "
                "transitions, and the utilities have no memory. Use `mappo`, `happo`, `armappo`, "
                "`mat_dec` or `agent_mixer` for agents that remember."
            )


class MAVEN(nn.Module):
    r"""MAVEN (`arXiv 1910.07483 <https://arxiv.org/abs/1910.07483>`_): committed exploration.

    At the start of an episode a hierarchical policy :math:`p(z \mid s_0)` draws a latent that all
    agents share until its end. Given it, the team learns by QMIX (`arXiv 1803.11485
    <https://arxiv.org/abs/1803.11485>`_) from replay,

    .. math:: y = r + \gamma (1 - \text{terminated}) \max_{a'} Q_{tot}^-(s', a', z)

    so that every z is a joint behavior of its own, kept over many steps. Two more terms:

    - a mutual-information bonus on the utilities, :math:`\log q(z \mid s, \sigma)` with the
      discriminator's logarithm, where :math:`\sigma` are the agents' Boltzmann policies
      ``softmax(Q_i / temperature)`` under z: a lower bound, up to the entropy of z, of how much
      behavior tells of z. Gradients reach the utilities through :math:`\sigma`.
    - the return of the episode is the reward of the hierarchical policy, with an entropy bonus.

    **Execution is decentralized up to the latent**: every agent acts greedily on its own
    observation and z, but the agents agree on z once, before the first step.
    ``execution_policy`` takes the hierarchical policy's mode at the *initial state*, and z may tell
    each agent what it does not see of that state itself; ``decentralized_execution`` is therefore
    false. After the first step no agent reads the state. ``individual_policy`` is the policy of
    collection: z drawn, epsilon-greedy actions.

    Departures from the paper, and why:

    - feed-forward utilities on single transitions in the place of recurrent ones on episodes, the
      discriminator reads steps in the place of trajectories: replay then needs no sequences, and
      the loop's batches may cut episodes. The bound is of the information in one step, which is
      not more than a trajectory's.
    - every z has its own last layer of the utilities, see :class:`LatentUtilities`; the mixer reads
      z beside the state, so that values of different z may differ as the behaviors do.
    - the hierarchical policy is trained on the episodes that ended in a batch, their returns
      standardized, by a clipped ratio (PPO) for ``epochs`` steps: batches of this loop hold many
      episodes, of which one plain policy-gradient step would learn little.
    - targets follow softly (TorchRL's ``SoftUpdate``), Adam in the place of RMSProp, for they need
      no more than one number, and are the same as in the other methods.

    One group of agents with discrete actions, which may be masked. ``"state"`` must be there.

    Args:
        env (EnvBase): sizes are read from its specs.
        total_frames (int): environment steps of the whole training.
        config (MAVENConfig, optional): hyperparameters.

    Attributes:
        replay (TransitionReplay): transitions ``[N]``, each with its latent.

    Raises:
        ValueError: for several groups of agents, or continuous actions.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env, with_memory
        >>> env = make_env("matrix/climbing", num_envs=16)
        >>> algorithm = MAVEN(env, total_frames=160)
        >>> env = with_memory(env, algorithm.policy)
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> round(metrics["epsilon"], 3), len(algorithm.replay)
        (0.3, 160)
    """

    decentralized_execution = False

    def __init__(self, env: EnvBase, total_frames: int, config: MAVENConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MAVENConfig()
        self.group = group = _discrete_group(env)
        self.total_frames = total_frames
        self.frames = 0
        size, latents = state_dim(env), config.num_latents
        norm = {"input_norm": config.input_norm}
        network = LatentUtilities(
            group.n_agents,
            group.observation_dim,
            group.action_dim,
            latents,
            hidden=config.actor_hidden,
            share_params=config.share_params,
            **norm,
        ).to(env.device)
        utilities = TensorDictModule(
            network,
            in_keys=[group.key("observation"), "latent"],
            out_keys=[group.key("action_value")],
        )
        logits = _classifier(size, config.latent_hidden, latents, **norm).to(env.device)
        self.policy = LatentPolicy(utilities, logits, group, num_latents=latents)
        self.utilities = utilities
        self.execution_policy = self.policy.deterministic()
        self.individual_policy = self.policy
        self.discriminator = _classifier(
            size + group.n_agents * group.action_dim, config.discriminator_hidden, latents, **norm
        ).to(env.device)
        self.mixer = TensorDictModule(
            LatentMixer(group.n_agents, size, latents, mixer_dim=config.mixer_dim).to(env.device),
            in_keys=[group.key("chosen_action_value"), "state", "latent"],
            out_keys=["chosen_action_value"],
        )
        self.loss = self._make_loss()
        self._targets = SoftUpdate(self.loss, tau=config.target_rate)
        self._value_parameters = [
            *self.utilities.parameters(),
            *self.mixer.parameters(),
            *self.discriminator.parameters(),
        ]
        self._latent_parameters = list(logits.parameters())
        self.optimizer = torch.optim.Adam(self._value_parameters, lr=config.lr, eps=config.adam_eps)
        self.latent_optimizer = torch.optim.Adam(
            self._latent_parameters, lr=config.lr_latent, eps=config.adam_eps
        )
        size = distributed.share(config.replay_size, "replay_size")
        self.replay = TransitionReplay(size, device=env.device)
        self._device = env.device
        self._episodes: TensorDictBase | None = None
        self.on_progress(0.0)

    @property
    def progress(self) -> float:
        """Share of training done, in [0, 1]."""
        return min(self.frames / self.total_frames, 1.0)

    @property
    def evaluated_policies(self) -> dict[str, TensorDictModuleBase]:
        """Policies to evaluate by the prefix of their metrics."""
        joint = {} if self.policy is self.individual_policy else {"eval_joint": self.policy}
        return {
            "eval": self.execution_policy,
            **joint,
            "eval_individual": Sampled(self.individual_policy),
        }

    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Learn from one batch of trajectories ``[num_envs, steps]`` and from replay.

        Batches follow one another: an episode may begin in one and end in a later one.

        Returns:
            dict: means over the gradient steps of the TD and discriminator losses, the information
            on z in behavior (nats; at most ``log(num_latents)``), and the gradient norm; the
            hierarchical policy's loss and entropy and the number of episodes that it learned from;
            and epsilon of the batch.

        Raises:
            ValueError: for another number of environments than before.
        """
        batch = batch.detach()
        epsilon = float(self.policy.epsilon)
        metrics = self._learn_latent(self._ended_episodes(batch))
        transitions = batch.select(*self._transition_keys()).reshape(-1)
        self.replay.extend(transitions)
        size = max(batch.numel() // self.config.num_minibatches, 1)
        steps = self.config.epochs * self.config.num_minibatches
        logs = [self._gradient_step(self.replay.sample(size)) for _ in range(steps)]
        metrics = TensorDict.stack(logs).mean(0).update(metrics)
        self.frames += batch.numel() * distributed.world_size()
        self.on_progress(self.progress)
        return {name: float(value) for name, value in metrics.items()} | {"epsilon": epsilon}

    def on_progress(self, progress: float) -> None:
        """Called after each update with the share of training done: anneals epsilon."""
        self.policy.epsilon.fill_(as_schedule(self.config.epsilon)(progress))

    def checkpoint_state(self) -> dict[str, Any]:
        """All that decides how training goes on, the replay buffer and open episodes included."""
        episodes = self._episodes
        return {
            "parameters": self.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "latent_optimizer": self.latent_optimizer.state_dict(),
            "replay": self.replay.state_dict(),
            "episodes": None if episodes is None else dict(episodes.items()),
            "frames": self.frames,
        }

    def load_checkpoint_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there, with the learning rates of this configuration.

        Raises:
            ValueError: for the state of another method, environment or network size.
        """
        try:
            self.load_state_dict(state["parameters"])
            load_optimizer(self.optimizer, state["optimizer"])
            load_optimizer(self.latent_optimizer, state["latent_optimizer"])
            self.replay.load_state_dict(state["replay"])
            episodes = _to(state["episodes"], self._device)
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"MAVEN: expected the state of the same method with the same sizes: {error}"
            ) from error
        self._episodes = None
        if episodes is not None:
            self._episodes = TensorDict(episodes, episodes["return"].shape, device=self._device)
        self.frames = state["frames"]
        self.on_progress(self.progress)

    def information(self, data: TensorDictBase) -> tuple[torch.Tensor, torch.Tensor]:
        """The discriminator's loss on utilities ``[N]``, and the bound of the information on z.

        Args:
            data (TensorDictBase): states, latents, ``(group, "action_value")`` and the mask.

        Returns:
            tuple: mean :math:`-\\log q(z | s, \\sigma)`, differentiable; and the entropy of the
            latents in ``data`` less that, in nats: about zero, or less, where nothing tells of z.
        """
        group, latent = self.group, data["latent"].squeeze(-1)
        mask_key = group.key("action_mask") if group.masked else None
        utilities = masked(data[group.key("action_value")], data, mask_key)
        behavior = (utilities / self.config.temperature).softmax(-1).flatten(-2)  # [N, n * K]
        logits = self.discriminator(torch.cat([data["state"], behavior], -1))
        loss = cross_entropy(logits, latent)
        share = one_hot(latent, self.config.num_latents).to(loss.dtype).mean(0)
        return loss, Categorical(probs=share).entropy() - loss.detach()

    def _gradient_step(self, minibatch: TensorDictBase) -> TensorDict:
        loss_td = self.loss(minibatch)["loss"]
        loss_information, information = self.information(self.utilities(minibatch))
        loss = loss_td + self.config.information_coeff * loss_information
        norm = descend(loss, self.optimizer, self._value_parameters, self.config.max_grad_norm)
        self._targets.step()
        return TensorDict(
            {
                "loss_td": loss_td,
                "loss_discriminator": loss_information,
                "information": information,
                "grad_norm": norm,
            }
        ).detach()

    def _ended_episodes(self, batch: TensorDictBase) -> TensorDictBase:
        """Initial state, latent, its log-probability and return of what ended in a batch: ``[E]``.

        Episodes that go on are kept for the next batch.
        """
        starts = batch.select("state", "latent")
        starts["log_prob"] = self._latent_dist(starts).log_prob(starts["latent"].squeeze(-1))
        starts["return"] = torch.zeros_like(batch["next", "reward"].squeeze(-1))
        starts = starts.detach()
        episodes = starts[:, 0] if self._episodes is None else self._episodes
        if episodes.shape != batch.shape[:1]:
            raise ValueError(
                f"MAVEN: expected a batch of {episodes.shape[0]} environments, as the last one, "
                f"got one of shape {tuple(batch.shape)}: [num_envs, steps]. Collect in the same "
                "environments, or build the method anew."
            )
        ended = []
        for t in range(batch.shape[1]):
            step = batch[:, t]
            episodes = starts[:, t].where(step["is_init"].squeeze(-1), episodes)
            episodes["return"] = episodes["return"] + step["next", "reward"].squeeze(-1)
            ended.append(episodes[step["next", "done"].squeeze(-1)])
        self._episodes = episodes
        return torch.cat(ended)

    def _learn_latent(self, episodes: TensorDictBase) -> TensorDict:
        """Clipped policy gradient of the hierarchical policy on ended episodes ``[E]``."""
        returns, clip = episodes["return"], self.config.clip_epsilon
        loss = entropy = returns.new_zeros(())
        # Ranks may have ended different numbers of them: sums, over the mean number.
        count = float(distributed.mean(returns.new_tensor(float(len(returns)))))
        steps = self.config.epochs if count else 0  # no episode may have ended
        if steps:
            deviation = returns - distributed.mean(returns.sum()) / count
            std = (distributed.mean(deviation.square().sum()) / count).sqrt()
            advantage = deviation / (std + 1e-6)
        for _ in range(steps):
            dist = self._latent_dist(episodes)
            ratio = (dist.log_prob(episodes["latent"].squeeze(-1)) - episodes["log_prob"]).exp()
            clipped = ratio.clamp(1 - clip, 1 + clip)
            loss = -torch.min(ratio * advantage, clipped * advantage).sum() / count
            entropy = dist.entropy().sum() / count
            total = loss - self.config.latent_entropy_coeff * entropy
            descend(
                total, self.latent_optimizer, self._latent_parameters, self.config.max_grad_norm
            )
        return TensorDict(
            {
                "loss_latent": loss,
                "latent_entropy": entropy,
                "episodes": torch.tensor(count * distributed.world_size()),
            }
        ).detach()

    def _latent_dist(self, data: TensorDictBase) -> Categorical:
        return Categorical(logits=self.policy.latent_logits(data["state"]))

    def _make_loss(self) -> QMixerLoss:
        """TorchRL's QMIX loss; utilities are maximized among legal actions."""
        group = self.group
        greedy = QValueModule(
            action_space="categorical",
            action_value_key=group.key("action_value"),
            action_mask_key=group.key("action_mask") if group.masked else None,
            out_keys=[
                group.key("action"),
                group.key("action_value"),
                group.key("chosen_action_value"),
            ],
        )
        loss = QMixerLoss(
            TensorDictSequential(self.utilities, greedy),
            self.mixer,
            delay_value=True,
            action_space="categorical",
        )
        loss.set_keys(
            action=group.key("action"),
            action_value=group.key("action_value"),
            local_value=group.key("chosen_action_value"),
        )
        loss.make_value_estimator(ValueEstimators.TD0, gamma=self.config.gamma)
        return loss

    def _transition_keys(self) -> list:
        group = self.group
        keys: list = [group.key("observation"), "state", "latent"]
        keys += [group.key("action_mask")] if group.masked else []
        return transition_keys(keys, group.key("action"))


def _discrete_group(env: EnvBase) -> AgentGroup:
    for group in agent_groups(env):
        if not group.discrete:
            raise ValueError(
                f"MAVEN: expected discrete actions, got continuous ones of group {group.name!r}: "
                "it takes a maximum over actions. Use `mappo`, `happo`, `armappo`, `mat` or "
                "`agent_mixer`."
            )
    return only_group(env, "MAVEN")


def _classifier(
    in_dim: int, hidden: tuple[int, ...], classes: int, *, input_norm: bool
) -> nn.Sequential:
    """Logits of a class; about uniform at first."""
    net = layer_norm_mlp(in_dim, hidden, input_norm=input_norm)
    return net.append(orthogonal_(nn.Linear([in_dim, *hidden][-1], classes), gain=0.01))


def _to(state: Any, device: torch.device | None) -> Any:
    """Nested dicts with their tensors on a device."""
    if isinstance(state, Mapping):
        return {key: _to(value, device) for key, value in state.items()}
    return state.to(device) if isinstance(state, torch.Tensor) and device is not None else state
