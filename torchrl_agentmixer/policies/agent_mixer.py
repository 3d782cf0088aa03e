"""AgentMixer's joint policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tensordict import NestedKey
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModuleBase,
    TensorDictSequential,
)
from torchrl.envs import EnvBase

from torchrl_agentmixer.groups import AgentGroup, agent_groups, state_dim
from torchrl_agentmixer.modules import GaussianActor, IGCCoefficients, PolicyModifier
from torchrl_agentmixer.policies.joint_distribution import (
    AnnealedModifier,
    check_joint,
    check_parts,
    make_coefficients,
    make_joint_module,
)
from torchrl_agentmixer.policies.product import (
    ContinuousDistribution,
    actor_module,
    hide,
    mode_policy,
    product_policy,
)


class AgentMixerPolicy(ProbabilisticTensorDictSequential):
    r"""AgentMixer's joint policy: actors, Policy Modifier and IGC distribution.

    Data flow, per group of agents (``"agents"`` below):

    - actors read ``("agents", "observation")`` ``[*B, n, o]`` and write the individual policies,
      ``("agents", "logits")`` ``[*B, n, K]`` or ``("agents", "loc")``, ``("agents", "scale")``
      ``[*B, n, A]``, and optionally ``("agents", "features")`` ``[*B, n, d]``;
    - :class:`~torchrl_agentmixer.modules.PolicyModifier` reads those and ``"state"`` ``[*B, s]``,
      and writes ``("agents", "perturbation")`` and ``"component_logits"`` ``[*B, m]``, or, for
      continuous actions without components, ``("agents", "joint_scale")``;
    - the IGC distribution writes ``("agents", "action")`` and one ``"action_log_prob"`` ``[*B]``
      per team (Eq. 13 of `arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_).

    Features and the Modifier's entries do not leave the policy; ``reset_out_keys()`` changes this.
    TorchRL's collectors, ``GAE`` and ``ClipPPOLoss`` take the policy unchanged
    (``loss.set_keys(action=("agents", "action"))``). :meth:`decentralized` returns the policy for
    execution.

    With discrete actions, or components, call :meth:`anneal` after each batch: it anneals the
    perturbation until the joint policy is the product of the individual policies. With continuous
    actions and a joint scale the joint mode is always the individual mode.

    Args:
        groups (sequence of AgentGroup): the agents.
        actors (sequence of TensorDictModuleBase): write the policy parameters of every group.
        modifier (PolicyModifier): built for these groups.

    Keyword Args:
        distribution (str): of continuous actions, ``"normal"`` (the paper's) or ``"tanh_normal"``.
        joint (bool): ``True``: one log-probability per team (the paper). ``False``: one per agent,
            ``("agents", "action_log_prob")`` ``[*B, n]``, for a loss with one ratio per agent. This
            needs one group. For a mixture, the log-probabilities are conditional on the actions of
            earlier agents; this needs continuous actions.
        validate_args (bool, optional): as in
            :class:`~torchrl_agentmixer.distributions.IGCCategorical`.
        **schedules: fields of :class:`~torchrl_agentmixer.modules.IGCSchedules` for discrete
            actions, of :class:`~torchrl_agentmixer.modules.PlanSchedules` for continuous actions
            with components.

    Raises:
        ValueError: for groups, actors and Modifier that do not match, ``joint=False`` with several
            groups or a discrete mixture, or schedules of a joint scale.

    Examples:
        >>> from torchrl_agentmixer.envs import make_env
        >>> env = make_env("matrix/climbing", num_envs=4)
        >>> policy = AgentMixerPolicy.from_env(env)
        >>> rollout = env.rollout(1, policy)
        >>> rollout["action_log_prob"].shape
        torch.Size([4, 1])
        >>> env.rollout(1, policy.decentralized())["agents", "action"].shape
        torch.Size([4, 1, 2])
    """

    modifier_class = PolicyModifier

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        actors: Sequence[TensorDictModuleBase],
        modifier: PolicyModifier,
        *,
        distribution: ContinuousDistribution = "normal",
        joint: bool = True,
        validate_args: bool | None = None,
        **schedules: Any,
    ) -> None:
        check_parts(groups, actors, modifier)
        check_joint(groups, modifier, joint)
        coefficients = make_coefficients(groups, modifier, schedules)
        deviation = modifier if coefficients is None else AnnealedModifier(modifier, coefficients)
        super().__init__(
            *actors,
            deviation,
            make_joint_module(groups, modifier, coefficients, distribution, joint, validate_args),
        )
        self.groups = tuple(groups)
        self.distribution = distribution
        self.joint = joint
        hide(self, [*deviation.out_keys, *(group.key("features") for group in groups)])

    @classmethod
    def from_env(
        cls,
        env: EnvBase,
        *,
        actor_kwargs: Mapping[str, Any] | None = None,
        modifier_kwargs: Mapping[str, Any] | None = None,
        state_key: NestedKey = "state",
        **kwargs: Any,
    ) -> AgentMixerPolicy:
        """Build default actors and Modifier from an environment's specs.

        Args:
            env (EnvBase): a TorchRL multi-agent environment with a state.

        Keyword Args:
            actor_kwargs (mapping, optional): options of the actors (``hidden``,
                ``share_params``, ...).
            modifier_kwargs (mapping, optional): options of
                :class:`~torchrl_agentmixer.modules.PolicyModifier` (``channels``,
                ``num_components``, ...).
            state_key (NestedKey): key of the environment's state.
            **kwargs: options of the class.

        Raises:
            KeyError: if the environment's specs lack state, observation or action.
        """
        groups = agent_groups(env)
        actors = [actor_module(group, **(actor_kwargs or {})) for group in groups]
        modifier = cls._make_modifier(groups, actors, env, state_key, modifier_kwargs)
        if not modifier.num_components:
            freeze_scales(actors)  # the joint scale replaces them in training
        return cls(groups, actors, modifier, **kwargs)

    @classmethod
    def from_actor(
        cls,
        actor: TensorDictModuleBase,
        env: EnvBase,
        *,
        modifier_kwargs: Mapping[str, Any] | None = None,
        state_key: NestedKey = "state",
        **kwargs: Any,
    ) -> AgentMixerPolicy:
        """Build the joint policy on an existing TorchRL multi-agent actor, which is shared.

        Args:
            actor (TensorDictModuleBase): writes ``(group, "logits")``, or ``(group, "loc")`` and
                ``(group, "scale")``, for every group. Modules at its end that select actions are
                removed: a probabilistic module, as in a ``ProbabilisticActor``, or the modes of an
                ``execution_policy``. ``(group, "features")`` are used if it writes them.
            env (EnvBase): sizes are read from its specs.

        Keyword Args:
            modifier_kwargs, state_key: as in :meth:`from_env`.
            **kwargs: options of the class.

        Raises:
            ValueError: if the actor does not write the parameters of a group's policy, or selects
                actions before its end.
        """
        groups = agent_groups(env)
        actors = [_without_action_selection(actor, groups)]
        modifier = cls._make_modifier(groups, actors, env, state_key, modifier_kwargs)
        return cls(groups, actors, modifier, **kwargs)

    @classmethod
    def _make_modifier(
        cls,
        groups: Sequence[AgentGroup],
        actors: Sequence[TensorDictModuleBase],
        env: EnvBase,
        state_key: NestedKey,
        options: Mapping[str, Any] | None,
    ) -> PolicyModifier:
        sizes = {group.name: _features_dim(group, actors) for group in groups}
        size = state_dim(env, state_key)
        modifier = cls.modifier_class(groups, size, features_dim=sizes, **(options or {}))
        modifier.set_keys(state=state_key)
        return modifier

    @property
    def actors(self) -> list[TensorDictModuleBase]:
        """Modules that write the individual policies' parameters."""
        writes = {key for group in self.groups for key in group.param_keys}
        return [module for module in self.module if writes & set(module.out_keys)]

    @property
    def modifier(self) -> PolicyModifier:
        """The Policy Modifier."""
        return next(m for m in self.modules() if isinstance(m, PolicyModifier))

    @property
    def action_keys(self) -> NestedKey | list[NestedKey]:
        """Key of the actions, or one key per group."""
        keys = [group.key("action") for group in self.groups]
        return keys[0] if len(keys) == 1 else keys

    @property
    def coefficients(self) -> IGCCoefficients | None:
        """Coefficients of the joint policy; ``None`` for a joint scale of continuous actions."""
        return next((m for m in self.modules() if isinstance(m, IGCCoefficients)), None)

    def anneal(self, progress: float) -> None:
        """Set the coefficients to their values at the fraction ``progress`` of training."""
        if self.coefficients is not None:
            self.coefficients.anneal(progress)

    def set_coefficients(self, **coefficients: float) -> None:
        """Set ``temperature``, ``strength``, ``consistency`` or ``modified_share`` to numbers.

        Raises:
            ValueError: for another name, or for a policy without coefficients.
        """
        if self.coefficients is not None:
            self.coefficients.set(**coefficients)
        elif coefficients:
            raise ValueError(
                f"set_coefficients: got {sorted(coefficients)}, but the joint policy has none: it "
                "has continuous actions and a joint scale."
            )

    def decentralized(self, deterministic: bool = True) -> TensorDictModuleBase:
        """Build the policy for decentralized execution: the individual policies.

        It shares the parameters. Each agent reads only its own observation. The paper evaluates the
        deterministic form.

        Args:
            deterministic (bool): ``True``: the individual modes, for any exploration type;
                ``False``: samples of the individual policies (with untrained scales where a joint
                scale replaces them).
        """
        if deterministic:
            return mode_policy(self.groups, self.actors, self.distribution)
        return product_policy(self.groups, self.actors, self.distribution, joint=self.joint)


def freeze_scales(actors: Sequence[TensorDictModuleBase]) -> None:
    """Exclude the scales of Gaussian actors from training; the joint scale replaces them."""
    for actor in actors:
        for module in actor.modules():
            if isinstance(module, GaussianActor):
                for parameter in module.scale_parameters:
                    parameter.requires_grad_(False)


def _without_action_selection(
    actor: TensorDictModuleBase, groups: Sequence[AgentGroup]
) -> TensorDictModuleBase:
    actions = {group.key("action") for group in groups}
    while isinstance(actor, TensorDictSequential) and len(actor.module):
        *rest, last = actor.module
        if not (isinstance(last, ProbabilisticTensorDictModule) or {*last.out_keys} <= actions):
            break
        actor = TensorDictSequential(*rest)
    written = [key for key in actor.out_keys if key in actions]
    if written:
        raise ValueError(
            f"from_actor: expected an actor that writes the parameters of a policy, got one that "
            f"also writes {written}, not at its end: remove the modules that select actions."
        )
    return actor


def _features_dim(group: AgentGroup, actors: Sequence[TensorDictModuleBase]) -> int:
    for actor in actors:
        if group.key("features") in actor.out_keys:
            for module in actor.modules():
                if isinstance(getattr(module, "features_dim", None), int):
                    return module.features_dim
            raise ValueError(
                f"from_actor: expected the width of {group.key('features')!r}, got none: "
                "give its network an integer attribute `features_dim`."
            )
    return 0
