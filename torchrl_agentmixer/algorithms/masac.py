"""MASAC: independent actors trained by SAC with central critics."""

from __future__ import annotations

from torchrl.envs import EnvBase

from torchrl_agentmixer.algorithms.sac_base import SACAlgorithm, SACConfig
from torchrl_agentmixer.policies import actor_module, mode_policy, product_policy


class MASAC(SACAlgorithm):
    r"""MASAC: SAC of independent actors with central critics of the joint action.

    Multi-agent SAC (`arXiv 1812.05905 <https://arxiv.org/abs/1812.05905>`_) with the central
    critics of MADDPG (`arXiv 1706.02275 <https://arxiv.org/abs/1706.02275>`_). The policy is the
    product of squashed Gaussians whose means and scales depend on each agent's own observation.
    All agents share a reward, so there is one pair of critics :math:`Q_k(s, a)`, and one step
    updates all actors together on TorchRL's ``SACLoss``:

    .. math:: \min_\phi E\left[ \alpha \sum_i \log \pi_{\phi^i}(a^i|o^i)
              - \min_{k} Q_k(s, a) \right], \qquad a^i \sim \pi_{\phi^i}(\cdot|o^i).

    **There is one alpha per team**, whose target is the entropy of the joint action. Alpha,
    critics, replay and update are those of :class:`AgentMixerSAC`. Execution is decentralized: the
    squashed individual means.

    **Discrete actions are not supported**, see :class:`AgentMixerSAC`.

    Args:
        env (EnvBase): sizes are read from its specs; it needs a ``"state"``.
        total_frames (int): environment steps of the whole training.
        config (SACConfig, optional): hyperparameters.

    Raises:
        ValueError: for discrete actions, or several groups of agents.
        KeyError: for an environment without a state.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("vmas/predator_prey", num_envs=16)
        >>> algorithm = MASAC(env, 1000, SACConfig(gradient_steps=2))
        >>> metrics = algorithm.update(env.rollout(10, algorithm.policy, break_when_any_done=False))
        >>> len(algorithm.replay), sorted(metrics)[:2]
        (160, ['alpha', 'entropy'])
    """

    config: SACConfig

    def __init__(self, env: EnvBase, total_frames: int, config: SACConfig | None = None) -> None:
        config = config or SACConfig()
        (group,) = self.supported_groups(env)
        actor = actor_module(group, **config.squashed_actor_kwargs).to(env.device)
        super().__init__(
            env,
            config,
            total_frames,
            policy=product_policy([group], [actor], "tanh_normal"),
            execution_policy=mode_policy([group], [actor], "tanh_normal"),
            actor_parameters=actor.parameters(),
        )
