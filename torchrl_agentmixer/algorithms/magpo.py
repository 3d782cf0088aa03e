"""MAGPO: an autoregressive guider, and decentralized learners that imitate it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase

from torchrl_agentmixer.algorithms.base import adam
from torchrl_agentmixer.algorithms.mat import MATDecConfig, encoder_critic_parts, make_encoder
from torchrl_agentmixer.algorithms.ppo import PPOAlgorithm, in_sequence, ppo_metrics
from torchrl_agentmixer.modules import RecurrentEncoder
from torchrl_agentmixer.objectives import MAGPOLoss
from torchrl_agentmixer.policies import (
    Sampled,
    TransformerPolicy,
    mode_policy,
    product_policy,
    team_divergence,
)


@dataclass(kw_only=True)
class MAGPOConfig(MATDecConfig):
    """Hyperparameters of MAGPO (`arXiv 2507.18059 <https://arxiv.org/abs/2507.18059>`_).

    ``embed_dim``, ``num_heads`` and ``num_blocks`` are the guider's; ``actor_hidden``,
    ``share_params`` and ``memory_dim`` the learners'. With ``memory_dim`` > 0 the guider has a
    memory of width ``embed_dim``.

    Args:
        guider_clip: delta > 1 of the double clip: the guider's probability of an action, divided by
            the learner's, is held between 1 / delta and delta. Infinity leaves the guider free.
        learner_coeff: alpha, the weight of the learners' own PPO term beside imitation.
    """

    guider_clip: float = 1.5
    learner_coeff: float = 1.0


class MAGPO(PPOAlgorithm):
    r"""Multi-Agent Guided Policy Optimization (`arXiv 2507.18059
    <https://arxiv.org/abs/2507.18059>`_).

    A centralized guider :math:`\prod_i \mu(a_i \mid o_1, \ldots, o_n, a_{<i})` collects and learns
    by PPO. Decentralized learners :math:`\prod_i \pi_i(a_i \mid o_i)`, actors as in :class:`MAPPO`,
    imitate it and have a PPO term of their own. A double clip and a divergence hold the guider
    where the learners can follow, see :class:`~torchrl_agentmixer.objectives.MAGPOLoss`. Guider
    and learners take their steps together, each with its own gradient clipping.

    ``policy`` is the guider; ``execution_policy`` takes the learners' modes. Evaluation reports the
    guider's conditional modes as ``eval_joint_`` and the sampled learners as ``eval_individual_``.

    The guider, its critic and the advantage are :class:`MAT`'s, with a GRU between encoder and
    decoder if the learners have a memory. ``guider_clip`` and ``learner_coeff`` are the defaults of
    the paper's published code; all else is as for the other methods. Differences from that code:
    its guider is Sable, a transformer with retention over time; the order of agents is fixed;
    loop, optimizer and Huber value loss are this package's.

    Args:
        env (EnvBase): sizes are read from its specs.
        total_frames (int): environment steps of the whole training.
        config (MAGPOConfig, optional): hyperparameters.

    Raises:
        ValueError: for several groups of agents.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=16)
        >>> algorithm = MAGPO(env, 160, MAGPOConfig(epochs=1, num_minibatches=1))
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> round(metrics["ratio"], 3)
        1.0
    """

    several_groups = False
    loss: MAGPOLoss

    def __init__(self, env: EnvBase, total_frames: int, config: MAGPOConfig | None = None) -> None:
        config = config or MAGPOConfig()
        (group,) = self.supported_groups(env)
        encoder = make_encoder(group, config)
        guider = TransformerPolicy.build(
            group,
            RecurrentEncoder(encoder) if config.memory_dim else encoder,
            distribution=config.distribution,
            **config.transformer_kwargs,
        ).to(env.device)
        actors = config.actors([group], env)
        learners = product_policy([group], actors, config.distribution, joint=False)
        # The learners' memory runs along with the guider's actions.
        policy = in_sequence([*actors, guider]) if config.memory_dim else guider
        loss_class = partial(
            MAGPOLoss,
            learners=learners,
            guider_clip=config.guider_clip,
            learner_coeff=config.learner_coeff,
        )
        parts = encoder_critic_parts(guider, encoder, group, config, env, loss_class)
        own = dict.fromkeys([*guider.parameters(), *parts["critic"].parameters()])
        super().__init__(
            config,
            total_frames,
            policy=policy,
            execution_policy=mode_policy([group], actors, config.distribution),
            param_groups=[{"params": list(own), "lr": config.lr}],
            evaluated={"eval_joint": policy, "eval_individual": Sampled(learners)},
            **parts,
        )
        self.learner_optimizer = adam(learners.parameters(), lr=config.lr, eps=config.adam_eps)
        self.optimizers["learner_optimizer"] = self.learner_optimizer

    @torch.no_grad()
    def diagnose(self, data: TensorDictBase) -> TensorDict:
        """Divergence from guider to learners, in nats per team, at the batch's actions."""
        guider, learners = (
            policy.get_dist(data.copy()) for policy in (self.loss.actor_network, self.loss.learners)
        )
        return TensorDict({"divergence": team_divergence(guider, learners, data.ndim).mean()})

    def _ppo_step(self, minibatch: TensorDictBase) -> TensorDict:
        """One step of the guider and its critic, and one of the learners."""
        losses = self.loss(minibatch)
        guider = losses["loss_objective"] + losses["loss_guider_kl"] + losses["loss_entropy"]
        learners = losses["loss_imitation"] + losses["loss_learner"]
        norm, learner_norm = self.gradient_steps(
            guider + losses["loss_critic"] + learners,
            [self.optimizer, self.learner_optimizer],
            self.config.max_grad_norm,
        )
        metrics = ppo_metrics(losses, norm)
        for name in ("loss_imitation", "loss_learner", "guider_clip_fraction"):
            metrics[name] = losses[name].detach()
        return metrics.set("grad_norm_learner", learner_norm)
