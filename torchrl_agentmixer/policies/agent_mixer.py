"""AgentMixer's joint policy, and the decentralized policies inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
)
from tensordict.utils import NestedKey
from torchrl.envs import EnvBase

from torchrl_agentmixer.distributions import GroupedDistributionBuilder, IGCMixture
from torchrl_agentmixer.groups import AgentGroup, agent_groups, state_dim
from torchrl_agentmixer.modules import IGCCoefficients, ModifierGroup, PolicyModifier
from torchrl_agentmixer.policies.product import (
    LOG_PROB_KEY,
    ContinuousDistribution,
    action_bounds,
    actor_module,
    distribution_class,
    mode_policy,
    probabilistic_module,
    product_policy,
)

DiscreteForm = Literal["perturbation", "temperature", "mixture"]
COMPONENT_LOGITS_KEY = "component_logits"


class AgentMixerPolicy(ProbabilisticTensorDictSequential):
    r"""The correlated joint policy: actors, Policy Modifier, IGC distribution.

    Data flow, for each group of agents (``"agents"`` below):

    - actors read ``("agents", "observation")`` ``[*B, n, o]`` and write the individual policies,
      ``("agents", "logits")`` ``[*B, n, K]`` or ``("agents", "loc")``, ``("agents", "scale")``
      ``[*B, n, A]``, and ``("agents", "features")`` ``[*B, n, d]``;
    - the Policy Modifier reads those, ``"state"`` ``[*B, s]`` and, with a correlation seed,
      ``"correlation_seed"`` ``[*B, w]``, and writes ``("agents", "perturbation")`` or
      ``("agents", "temperature")`` (discrete) or ``("agents", "joint_scale")`` (continuous), and
      ``"component_logits"`` ``[*B, m]`` where the joint policy is a mixture;
    - the IGC distribution writes ``("agents", "action")`` and one ``"action_log_prob"`` ``[*B]``
      for the whole team (Eq. 13 of `arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_).

    TorchRL's collectors, ``GAE`` and ``ClipPPOLoss`` take it unchanged
    (``loss.set_keys(action=("agents", "action"))``). :meth:`decentralized` is what is deployed.

    Args:
        groups (sequence of AgentGroup): the agents.
        actors (sequence of TensorDictModuleBase): one for each group.
        modifier (PolicyModifier): built for these groups.

    Keyword Args:
        state_key (NestedKey): the entry that the Modifier reads.
        seed_key (NestedKey): the correlation seed, read if ``modifier.seed_dim > 0``;
            :class:`~torchrl_agentmixer.envs.CorrelationSeed` writes it.
        distribution (str): of continuous actions, ``"normal"`` (the paper's) or ``"tanh_normal"``.
        joint (bool): write one log-probability for the team (the paper's), or one for each agent,
            ``("agents", "action_log_prob")`` ``[*B, n]``, for a loss with a ratio for each. Given
            what the Modifier reads the joint policy is a product over agents, unless it is a
            mixture; one group only.
        temperature, strength, consistency, modified_share (float): first values of the
            coefficients of :class:`~torchrl_agentmixer.distributions.IGCCategorical` and (the last)
            :class:`~torchrl_agentmixer.distributions.IGCMixture`; change them with
            :meth:`set_coefficients`.
        noise_bound, noise_gain, margin (float): see ``IGCCategorical``.
        validate_args (bool, optional): see ``IGCCategorical``.

    Raises:
        ValueError: for groups, actors and Modifier that do not fit together, or ``joint=False``
            with several groups or a mixture.

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

    def __init__(
        self,
        groups: Sequence[AgentGroup],
        actors: Sequence[TensorDictModuleBase],
        modifier: PolicyModifier,
        *,
        state_key: NestedKey = "state",
        seed_key: NestedKey = "correlation_seed",
        distribution: ContinuousDistribution = "normal",
        joint: bool = True,
        temperature: float = 1.0,
        strength: float = 1.0,
        consistency: float = 0.0,
        modified_share: float = 1.0,
        noise_bound: float = 0.95,
        noise_gain: float = 1.0,
        margin: float = 1e-2,
        validate_args: bool | None = None,
    ) -> None:
        _check_parts(groups, actors, modifier)
        if not joint and (len(groups) > 1 or modifier.num_components):
            raise ValueError(
                "AgentMixerPolicy: expected one group and no mixture for `joint=False`, got groups "
                f"{[group.name for group in groups]} and {modifier.num_components} components: use "
                "`joint=True`, or another `form`."
            )
        modules: list[TensorDictModuleBase] = list(actors)
        discrete = [group.name for group in groups if group.discrete]
        if discrete:
            coefficients = {"strength": strength, "consistency": consistency}
            if any(spec.output == "perturbation" for spec in modifier.groups):
                coefficients["temperature"] = temperature
            if modifier.num_components:
                coefficients["modified_share"] = modified_share
            modules.append(IGCCoefficients(discrete, **coefficients))
        modules.append(_modifier_module(groups, actors, modifier, state_key, seed_key))
        options = {
            "noise_bound": noise_bound,
            "noise_gain": noise_gain,
            "margin": margin,
            "validate_args": validate_args,
        }
        modules.append(_joint_module(groups, modifier, distribution, joint, options))
        super().__init__(*modules)
        self.groups = tuple(groups)
        self.distribution = distribution
        self.joint = joint

    @classmethod
    def from_env(
        cls,
        env: EnvBase,
        *,
        actor_kwargs: Mapping[str, Any] | None = None,
        modifier_kwargs: Mapping[str, Any] | None = None,
        form: DiscreteForm = "perturbation",
        state_key: NestedKey = "state",
        **kwargs: Any,
    ) -> AgentMixerPolicy:
        """Build actors and Modifier from an environment's specs.

        Args:
            env (EnvBase): a TorchRL multi-agent environment with a state.

        Keyword Args:
            actor_kwargs (mapping, optional): options of the actors (``hidden``,
                ``share_params``, ...).
            modifier_kwargs (mapping, optional): options of :class:`PolicyModifier`
                (``seed_dim``, ``head_gain``, ...).
            form (str): of discrete actions. ``"perturbation"``: Eq. 12. ``"temperature"``: the
                Modifier writes a temperature. ``"mixture"``: a mixture of several Eq. 12, as many
                as ``modifier_kwargs["num_components"]`` says (16 if it does not).
            state_key (NestedKey): where the environment writes its state.
            **kwargs: as for the class.

        Raises:
            KeyError: if the environment has no state, observation or action under its key.
        """
        groups = agent_groups(env)
        actors = [actor_module(group, **(actor_kwargs or {})) for group in groups]
        return cls._around(
            groups, actors, state_dim(env, state_key), form, modifier_kwargs, state_key, kwargs
        )

    @classmethod
    def from_actor(
        cls,
        actor: TensorDictModuleBase,
        env: EnvBase,
        *,
        modifier_kwargs: Mapping[str, Any] | None = None,
        form: DiscreteForm = "perturbation",
        state_key: NestedKey = "state",
        **kwargs: Any,
    ) -> AgentMixerPolicy:
        """Put a Policy Modifier around an existing TorchRL multi-agent actor; it stays shared.

        Args:
            actor (TensorDictModuleBase): writes ``(group, "logits")``, or ``(group, "loc")`` and
                ``(group, "scale")``, for every group. What chooses actions at its end is left out:
                a probabilistic module, as of a ``ProbabilisticActor``, or the modes of an
                ``execution_policy``. Its ``(group, "features")`` are used if it writes them.
            env (EnvBase): where the actor acts; sizes are read from its specs.

        Keyword Args:
            modifier_kwargs, form, state_key: as in :meth:`from_env`.
            **kwargs: as for the class.

        Raises:
            ValueError: if the actor does not write the parameters of a group's policy, or chooses
                actions before its end.
        """
        groups = agent_groups(env)
        actor = _without_choice(actor, groups)
        for group in groups:
            missing = [key for key in group.param_keys if key not in actor.out_keys]
            if missing:
                raise ValueError(
                    f"from_actor: expected an actor that writes {group.param_keys} for group "
                    f"{group.name!r}, got one that writes {actor.out_keys}: {missing} missing."
                )
        return cls._around(
            groups, [actor], state_dim(env, state_key), form, modifier_kwargs, state_key, kwargs
        )

    @classmethod
    def _around(
        cls,
        groups: Sequence[AgentGroup],
        actors: Sequence[TensorDictModuleBase],
        state_size: int,
        form: DiscreteForm,
        modifier_kwargs: Mapping[str, Any] | None,
        state_key: NestedKey,
        kwargs: Mapping[str, Any],
    ) -> AgentMixerPolicy:
        if form not in get_args(DiscreteForm):
            raise ValueError(f"expected `form` in {get_args(DiscreteForm)}, got {form!r}.")
        mixture = form == "mixture" and any(group.discrete for group in groups)
        if mixture:
            modifier_kwargs = {"num_components": 16, **(modifier_kwargs or {})}
        components = (modifier_kwargs or {}).get("num_components", 0)
        if mixture != (components > 0):
            raise ValueError(
                "expected `num_components` >= 1 for `form` 'mixture' and 0 for others, got "
                f"{components} for {form!r}."
            )
        specs = [_modifier_group(group, actors, form) for group in groups]
        modifier = PolicyModifier(specs, state_size, **(modifier_kwargs or {}))
        return cls(groups, actors, modifier, state_key=state_key, **kwargs)

    @property
    def actors(self) -> list[TensorDictModuleBase]:
        """The decentralized actors' modules."""
        writes = {key for group in self.groups for key in group.param_keys}
        return [module for module in self.module if writes & set(module.out_keys)]

    @property
    def modifier(self) -> PolicyModifier:
        """The Policy Modifier."""
        return next(m for m in self.modules() if isinstance(m, PolicyModifier))

    @property
    def action_keys(self) -> NestedKey | list[NestedKey]:
        """Where actions are written: one key, or one for each of several groups."""
        keys = [group.key("action") for group in self.groups]
        return keys[0] if len(keys) == 1 else keys

    @property
    def coefficient_names(self) -> tuple[str, ...]:
        """What :meth:`set_coefficients` can change; nothing without discrete actions."""
        return self._coefficients.names if self._coefficients is not None else ()

    @property
    def _coefficients(self) -> IGCCoefficients | None:
        return next((m for m in self.modules() if isinstance(m, IGCCoefficients)), None)

    def set_coefficients(self, **coefficients: float) -> None:
        """Change ``temperature``, ``strength``, ``consistency`` or, of a mixture,
        ``modified_share`` in place, for annealing.

        Raises:
            ValueError: for another name, or for a policy without discrete actions.
        """
        if self._coefficients is not None:
            self._coefficients.set(**coefficients)
        elif coefficients:
            raise ValueError(
                f"set_coefficients: got {sorted(coefficients)}, but no group has discrete actions."
            )

    def decentralized(self, deterministic: bool = True) -> TensorDictModuleBase:
        """What is executed: the individual policies, on their own observations, sharing parameters.

        Neither state, Modifier, seed nor another agent's observation is read. Evaluation scores of
        the paper are of the deterministic one.

        Args:
            deterministic (bool): act by the individual modes, whatever the exploration type; or
                sample the individual policies.
        """
        if deterministic:
            return mode_policy(self.groups, self.actors, self.distribution)
        return product_policy(self.groups, self.actors, self.distribution, joint=self.joint)


def _without_choice(
    actor: TensorDictModuleBase, groups: Sequence[AgentGroup]
) -> TensorDictModuleBase:
    """An actor without the modules at its end that choose actions."""
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
            f"also writes {written}, not at its end: leave out what chooses actions."
        )
    return actor


def _modifier_group(
    group: AgentGroup, actors: Sequence[TensorDictModuleBase], form: DiscreteForm
) -> ModifierGroup:
    per_agent = "perturbation" if form == "mixture" else form
    output = per_agent if group.discrete else "scale"
    return ModifierGroup(
        n_agents=group.n_agents,
        params_dim=group.params_dim,
        out_dim=1 if output == "temperature" else group.action_dim,
        features_dim=_features_dim(group, actors),
        output=output,
    )


def _features_dim(group: AgentGroup, actors: Sequence[TensorDictModuleBase]) -> int:
    for actor in actors:
        if group.key("features") in actor.out_keys:
            for module in actor.modules():
                if isinstance(getattr(module, "features_dim", None), int):
                    return module.features_dim
            raise ValueError(
                f"the actor writes {group.key('features')!r}, but no module in it says how wide: "
                "give its network an integer attribute `features_dim`."
            )
    return 0


def _modifier_module(
    groups: Sequence[AgentGroup],
    actors: Sequence[TensorDictModuleBase],
    modifier: PolicyModifier,
    state_key: NestedKey,
    seed_key: NestedKey,
) -> TensorDictModule:
    in_keys: list[NestedKey] = [state_key, *([seed_key] if modifier.seed_dim else [])]
    out_keys: list[NestedKey] = []
    for group, spec in zip(groups, modifier.groups, strict=True):
        in_keys += group.param_keys
        if spec.features_dim:
            in_keys.append(group.key("features"))
        out_keys.append(group.key(_output_name(spec)))
    if modifier.num_components:
        out_keys.append(COMPONENT_LOGITS_KEY)
    return TensorDictModule(modifier, in_keys=in_keys, out_keys=out_keys)


def _output_name(spec: ModifierGroup) -> str:
    return "joint_scale" if spec.output == "scale" else spec.output


def _joint_module(
    groups: Sequence[AgentGroup],
    modifier: PolicyModifier,
    distribution: ContinuousDistribution,
    joint: bool,
    options: dict[str, Any],
) -> ProbabilisticTensorDictModule:
    in_keys: dict[str, NestedKey] = {}
    kwargs: dict[str, dict[str, Any]] = {}
    per = {} if modifier.num_components else {"joint": joint}  # a mixture has no other form
    for group, spec in zip(groups, modifier.groups, strict=True):
        if group.discrete:
            leaves = ["logits", "strength", "consistency", "temperature"]
            leaves += ["perturbation"] if spec.output == "perturbation" else []
            if modifier.num_components:
                leaves.append("modified_share")
                in_keys[f"{group.name}.component_logits"] = COMPONENT_LOGITS_KEY
            in_keys |= {f"{group.name}.{leaf}": group.key(leaf) for leaf in leaves}
            if group.masked:
                in_keys[f"{group.name}.mask"] = group.key("action_mask")
            kwargs[group.name] = per | options
        else:
            in_keys[f"{group.name}.loc"] = group.key("loc")
            in_keys[f"{group.name}.scale"] = group.key("joint_scale")
            kwargs[group.name] = (
                per
                | {"validate_args": options["validate_args"]}
                | action_bounds(group, distribution)
            )
    classes: dict[str, type] = {
        group.name: distribution_class(group, distribution) for group in groups
    }
    if modifier.num_components:
        classes = dict.fromkeys(classes, IGCMixture)
    builder = GroupedDistributionBuilder(classes, kwargs)
    log_prob_key = LOG_PROB_KEY if joint else groups[0].key(LOG_PROB_KEY)
    return probabilistic_module(groups, in_keys, builder, log_prob_key)


def _check_parts(
    groups: Sequence[AgentGroup],
    actors: Sequence[TensorDictModuleBase],
    modifier: PolicyModifier,
) -> None:
    if not groups:
        raise ValueError("AgentMixerPolicy: expected at least one group of agents, got none.")
    written = [key for actor in actors for key in actor.out_keys]
    for group in groups:
        missing = [key for key in group.param_keys if key not in written]
        if missing:
            raise ValueError(
                f"AgentMixerPolicy: expected actors that write {group.param_keys}, got actors that "
                f"write {written}: {missing} missing."
            )
    given = [(spec.n_agents, spec.params_dim) for spec in modifier.groups]
    expected = [(group.n_agents, group.params_dim) for group in groups]
    if given != expected:
        raise ValueError(
            "AgentMixerPolicy: expected a PolicyModifier for groups of (n_agents, params_dim) "
            f"{expected}, got one for {given}."
        )
