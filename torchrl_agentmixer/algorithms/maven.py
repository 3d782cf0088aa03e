"""MAVEN: QMIX with a shared latent per episode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import EnvBase
from torchrl.objectives import SoftUpdate

from torchrl_agentmixer.algorithms.base import Algorithm, adam
from torchrl_agentmixer.algorithms.maven_config import MAVENConfig
from torchrl_agentmixer.algorithms.replay import TransitionReplay, transition_keys
from torchrl_agentmixer.groups import AgentGroup, state_dim
from torchrl_agentmixer.modules import LatentMixer, LatentUtilities
from torchrl_agentmixer.modules.mlp import layer_norm_mlp, orthogonal_
from torchrl_agentmixer.objectives import LatentPolicyLoss, MAVENLoss
from torchrl_agentmixer.policies import Greedy, LatentPolicy, Sampled
from torchrl_agentmixer.schedules import as_schedule


class MAVEN(Algorithm):
    r"""MAVEN (`arXiv 1910.07483 <https://arxiv.org/abs/1910.07483>`_): committed exploration.

    At the start of an episode a hierarchical policy :math:`p(z \mid s_0)` draws a latent that all
    agents share until the end. Given the latent, the team learns by QMIX (`arXiv 1803.11485
    <https://arxiv.org/abs/1803.11485>`_) from replay,

    .. math:: y = r + \gamma (1 - \text{terminated}) \max_{a'} Q_{tot}^-(s', a', z)

    with two more terms:

    - a mutual-information bonus, see :class:`~torchrl_agentmixer.objectives.MAVENLoss`;
    - PPO of the hierarchical policy on the episodes' returns, with an entropy bonus, see
      :class:`~torchrl_agentmixer.objectives.LatentPolicyLoss`.

    **Execution needs a shared latent**: every agent acts greedily on its own observation and z, but
    ``execution_policy`` takes z from the *initial state*, which can carry information that an agent
    does not observe. ``decentralized_execution`` is therefore false. After the first step no agent
    reads the state.

    Differences from the paper:

    - utilities are feed-forward and discriminator and replay use single transitions, where the
      paper has recurrent utilities and trajectories. The information in one step is a lower bound
      of that in a trajectory.
    - the hypernetwork of the utilities is one last layer per z, see
      :class:`~torchrl_agentmixer.modules.LatentUtilities`.
    - the hierarchical policy is trained by PPO for ``epochs`` steps on the episodes that ended in a
      batch, with standardized returns.
    - target networks are updated softly (``SoftUpdate``), and the optimizer is Adam.

    Args:
        env (EnvBase): sizes are read from its specs; it needs a ``"state"``.
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

    continuous = False
    several_groups = False
    decentralized_execution = False

    config: MAVENConfig
    policy: LatentPolicy

    def __init__(self, env: EnvBase, total_frames: int, config: MAVENConfig | None = None) -> None:
        config = config or MAVENConfig()
        super().__init__(config, total_frames)
        (group,) = self.supported_groups(env)
        self._build_networks(group, state_dim(env), env.device)
        self.execution_policy = Greedy(self.policy)
        self.evaluated_policies = {
            "eval": self.execution_policy,
            "eval_individual": Sampled(self.policy),
        }
        self._targets = SoftUpdate(self.loss.td, tau=config.target_rate)
        values = (self.policy.utilities, self.mixer, self.loss.discriminator)
        parameters = [parameter for module in values for parameter in module.parameters()]
        self.optimizers = {
            "values": adam(parameters, lr=config.lr, eps=config.adam_eps),
            "latent": adam(
                self.policy.latent_logits.parameters(), lr=config.lr_latent, eps=config.adam_eps
            ),
        }
        size = self.share(config.replay_size, "replay_size")
        self.replay = TransitionReplay(size, device=env.device)
        keys = [key for key in self.policy.in_keys if key != "is_init"]
        self._transition_keys = transition_keys(keys, group.key("action"))
        self._device = env.device
        self._episodes: TensorDictBase | None = None
        self.on_progress(0.0)

    def _build_networks(self, group: AgentGroup, size: int, device: Any) -> None:
        config, latents, norm = self.config, self.config.num_latents, self.config.input_norm
        network = LatentUtilities(
            group.n_agents,
            group.observation_dim,
            group.action_dim,
            latents,
            **config.actor_kwargs,
        ).to(device)
        utilities = TensorDictModule(
            network,
            in_keys=[group.key("observation"), "latent"],
            out_keys=[group.key("action_value")],
        )
        logits = _classifier(size, config.latent_hidden, latents, norm).to(device)
        self.policy = LatentPolicy(utilities, logits, group, num_latents=latents)
        behavior = group.n_agents * group.action_dim
        discriminator = _classifier(size + behavior, config.discriminator_hidden, latents, norm)
        self.mixer = TensorDictModule(
            LatentMixer(group.n_agents, size, latents, mixer_dim=config.mixer_dim).to(device),
            in_keys=[group.key("chosen_action_value"), "state", "latent"],
            out_keys=["chosen_action_value"],
        )
        self.loss = MAVENLoss(
            utilities,
            self.mixer,
            discriminator.to(device),
            group,
            num_latents=latents,
            gamma=config.gamma,
            temperature=config.temperature,
        )
        self.latent_loss = LatentPolicyLoss(
            logits,
            clip_epsilon=config.clip_epsilon,
            entropy_coeff=config.latent_entropy_coeff,
        )

    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Train on one batch of trajectories ``[num_envs, steps]`` and on replay.

        Batches must be consecutive: an episode may continue in the next batch.

        Returns:
            dict: means over gradient steps of TD and discriminator losses, mutual information
            (nats; at most ``log(num_latents)``) and gradient norm; loss, entropy and number of
            episodes of the hierarchical policy; epsilon of the batch.

        Raises:
            ValueError: if the number of environments changes.
        """
        batch = batch.detach()
        epsilon = float(self.policy.exploration.eps)
        metrics = self._learn_latent(self._ended_episodes(batch))
        self.replay.extend(batch.select(*self._transition_keys).reshape(-1))
        size = max(batch.numel() // self.config.num_minibatches, 1)
        steps = self.config.epochs * self.config.num_minibatches
        logs = [self._learn_values(self.replay.sample(size)) for _ in range(steps)]
        metrics = TensorDict.stack(logs).mean(0).update(metrics)
        self.count_frames(batch)
        return {name: float(value) for name, value in metrics.items()} | {"epsilon": epsilon}

    def on_progress(self, progress: float) -> None:
        self.policy.exploration.eps.fill_(as_schedule(self.config.epsilon)(progress))

    def checkpoint_state(self) -> dict[str, Any]:
        """State for resuming, with replay buffer and unfinished episodes."""
        episodes = self._episodes
        return super().checkpoint_state() | {
            "replay": self.replay.state_dict(),
            "episodes": None if episodes is None else dict(episodes.items()),
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.replay.load_state_dict(state["replay"])
        self._episodes = None
        if state["episodes"] is not None:
            size = state["episodes"]["return"].shape
            self._episodes = TensorDict(state["episodes"], size).to(self._device or "cpu")

    def _learn_values(self, minibatch: TensorDictBase) -> TensorDict:
        losses = self.loss(minibatch)
        loss = losses["loss_td"] + self.config.information_coeff * losses["loss_discriminator"]
        norm = self.gradient_step(loss, self.optimizers["values"], self.config.max_grad_norm)
        self._targets.step()
        return losses.detach().set("grad_norm", norm)

    def _ended_episodes(self, batch: TensorDictBase) -> TensorDictBase:
        """Initial state, latent, log-probability and return of ended episodes, ``[E]``.

        Unfinished episodes are kept for the next batch.
        """
        starts = batch.select("state", "latent")
        latent = starts["latent"].squeeze(-1)
        with torch.no_grad():
            starts["latent_log_prob"] = self.latent_loss.dist(starts).log_prob(latent)
        starts["return"] = torch.zeros_like(batch["next", "reward"].squeeze(-1))
        episodes = starts[:, 0] if self._episodes is None else self._episodes
        if episodes.shape != batch.shape[:1]:
            raise ValueError(
                f"MAVEN: expected a batch [num_envs, steps] of {episodes.shape[0]} environments, "
                f"as before, got {tuple(batch.shape)}: collect in the same environments."
            )
        every = []
        for t in range(batch.shape[1]):
            step = batch[:, t]
            episodes = starts[:, t].where(step["is_init"].squeeze(-1), episodes)
            episodes["return"] = episodes["return"] + step["next", "reward"].squeeze(-1)
            every.append(episodes)
        self._episodes = episodes
        ended = batch["next", "done"].squeeze(-1).T  # [steps, num_envs]
        return torch.stack(every)[ended]

    def _learn_latent(self, episodes: TensorDictBase) -> TensorDict:
        """Update the hierarchical policy on ended episodes ``[E]``."""
        returns = episodes["return"]
        zero = returns.new_zeros(())
        metrics = TensorDict({"loss_latent": zero, "latent_entropy": zero})
        # The numbers of episodes may differ between processes: divide sums by the mean number.
        count = float(self.mean_over_processes(returns.new_tensor(float(len(returns)))))
        if count:
            deviation = returns - self.mean_over_processes(returns.sum()) / count
            std = (self.mean_over_processes(deviation.square().sum()) / count).sqrt()
            episodes = episodes.copy().set("advantage", deviation / (std + 1e-6))
        for _ in range(self.config.epochs if count else 0):
            losses = self.latent_loss(episodes, count)
            loss = losses["loss_latent"] + losses["loss_entropy"]
            self.gradient_step(loss, self.optimizers["latent"], self.config.max_grad_norm)
            metrics = losses.detach().exclude("loss_entropy")
        return metrics.set("episodes", torch.tensor(count * self.num_processes()))


def _classifier(in_dim: int, hidden: tuple[int, ...], classes: int, norm: bool) -> nn.Sequential:
    """Classifier with nearly uniform initial probabilities."""
    net = layer_norm_mlp(in_dim, hidden, input_norm=norm)
    return net.append(orthogonal_(nn.Linear([in_dim, *hidden][-1], classes), gain=0.01))
