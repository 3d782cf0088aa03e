"""AgentMixer on BenchMARL's MAPPO."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from benchmarl.algorithms import Mappo, MappoConfig
from benchmarl.experiment.callback import Callback
from benchmarl.models.common import ModelConfig
from tensordict import TensorDictBase
from tensordict.nn import (
    InteractionType,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)
from tensordict.utils import unravel_key
from torch import nn
from torchrl.objectives import LossModule

from torchrl_agentmixer.algorithms import AgentMixerConfig as DiscreteConfig
from torchrl_agentmixer.algorithms import ContinuousAgentMixerConfig as ContinuousConfig
from torchrl_agentmixer.benchmarl.team_distribution import TeamDistribution
from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.modules import PolicyModifier
from torchrl_agentmixer.objectives import optimistic
from torchrl_agentmixer.policies import AgentMixerPolicy
from torchrl_agentmixer.schedules import as_schedule


class AgentMixer(Mappo):
    """AgentMixer (`arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_) as a BenchMARL algorithm.

    BenchMARL's model is the individual policy. With a Policy Modifier and an IGC distribution it
    makes the joint policy, which BenchMARL's collector and PPO loss use. The Modifier reads the
    task's state, or all observations of the group for a task without a state. Each group of agents
    is a team with its own Modifier. The team's advantage is the mean over its agents, normalized
    over the batch.

    BenchMARL's deterministic evaluation runs the individual modes (:meth:`decentralized`);
    stochastic evaluation (``evaluation_deterministic_actions=False``) runs the joint policy.

    Args:
        **kwargs: the fields of :class:`AgentMixerConfig`, and those of BenchMARL's ``Mappo``.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.options = {name: kwargs.pop(name) for name in OPTIONS}
        super().__init__(**kwargs)
        self.policies: dict[str, AgentMixerPolicy] = {}
        # A new list: the user may pass the same list to another experiment.
        self.experiment.callbacks = [*self.experiment.callbacks, _Annealing(self)]

    def decentralized(self, deterministic: bool = True) -> TensorDictSequential:
        """Build the policy for decentralized execution: every group's individual policies.

        Args:
            deterministic (bool): take the individual modes, or sample.

        Returns:
            TensorDictSequential: reads the inputs of BenchMARL's model and masks; shares
                parameters.
        """
        return TensorDictSequential(
            *(self.policies[group].decentralized(deterministic) for group in self.policies)
        )

    def _recipe(self, continuous: bool) -> DiscreteConfig | ContinuousConfig:
        """This package's hyperparameters for these actions, with the given options."""
        recipe: Any = ContinuousConfig if continuous else DiscreteConfig
        given = {name: value for name, value in self.options.items() if value is not None}
        foreign = sorted(set(given) - {field.name for field in fields(recipe)})
        if foreign:
            kind = "continuous" if continuous else "discrete"
            raise ValueError(
                f"AgentMixer: expected options for {kind} actions, got {foreign}: leave them None."
            )
        return recipe(**given)

    def _get_policy_for_loss(
        self, group: str, model_config: ModelConfig, continuous: bool
    ) -> ProbabilisticTensorDictSequential:
        agents, recipe = self._agents(group, continuous), self._recipe(continuous)
        individual = super()._get_policy_for_loss(group, model_config, continuous)
        actor = TensorDictSequential(*list(individual.module)[:-1])
        state, state_size = self._state_module(group)
        options = recipe.policy_kwargs
        modifier = PolicyModifier([agents], state_size, **options.pop("modifier_kwargs"))
        modifier.set_keys(state=state.out_keys[0])
        options["distribution"] = "tanh_normal" if self.use_tanh_normal else "normal"
        policy = AgentMixerPolicy([agents], [state, actor], modifier, **options)
        for module in policy.module:
            if module is not actor:  # BenchMARL moves its model, with parts of a GRU on "meta"
                module.to(self.device)
        self.policies[group] = policy
        return _for_benchmarl(policy, group)

    def _get_parameters(self, group: str, loss: LossModule) -> dict[str, Iterable]:
        """BenchMARL's parameters, with a parameter group and a learning rate for the Modifier."""
        parameters = super()._get_parameters(group, loss)
        policy = self.policies[group]
        modifier = list(policy.modifier.parameters())
        known = {id(parameter) for parameter in modifier}
        actor = [p for p in parameters["loss_objective"] if p.requires_grad and id(p) not in known]
        lr = self._recipe(continuous=not policy.groups[0].discrete).lr_modifier
        parameters["loss_objective"] = [{"params": actor}, {"params": modifier, "lr": lr}]
        return parameters

    def process_batch(self, group: str, batch: TensorDictBase) -> TensorDictBase:
        """BenchMARL's advantages, averaged over agents, normalized and optimistic.

        BenchMARL's MAPPO does not normalize. The joint scale of continuous actions learns slowly:
        while the critic overestimates, all advantages are negative, and the means would diverge
        from all samples.
        """
        batch = super().process_batch(group, batch)
        advantage = batch.get((group, "advantage"))  # [*B, n, 1]
        team = advantage.mean(-2, keepdim=True)
        team = (team - team.mean()) / team.std().clamp_min(1e-6)
        recipe = self._recipe(continuous=not self.policies[group].groups[0].discrete)
        team = optimistic(team, as_schedule(recipe.optimism)(self.progress))
        return batch.set((group, "advantage"), team.expand_as(advantage).clone())

    @property
    def progress(self) -> float:
        """Completed fraction of training, in [0, 1]."""
        total = self.experiment.config.get_max_n_frames(self.experiment.on_policy)
        return min(1.0, self.experiment.total_frames / total)

    def _agents(self, group: str, continuous: bool) -> AgentGroup:
        action = self.action_spec[group, "action"]
        masked_groups = [] if self.action_mask_spec is None else list(self.action_mask_spec.keys())
        observations = self.observation_spec[group].values(True, True)
        bounded = continuous and self.use_tanh_normal
        return AgentGroup(
            group,
            n_agents=len(self.group_map[group]),
            observation_dim=sum(spec.shape[1:].numel() for spec in observations),
            action_dim=action.shape[-1] if continuous else action.space.n,
            discrete=not continuous,
            masked=not continuous and group in masked_groups,
            low=action.space.low.to(self.device) if bounded else None,
            high=action.space.high.to(self.device) if bounded else None,
        )

    def _state_module(self, group: str) -> tuple[TensorDictModule, int]:
        """The module that writes the Modifier's state ``[*B, s]``, and ``s``."""
        if self.state_spec is not None:
            specs = dict(self.state_spec.items(True, True))
        else:
            observations = self.observation_spec[group].items(True, True)
            specs = {unravel_key((group, key)): spec for key, spec in observations}
        module = TensorDictModule(
            _Flat([spec.ndim for spec in specs.values()]),
            in_keys=list(specs),
            out_keys=[f"{group}_modifier_state"],
        )
        return module, sum(spec.shape.numel() for spec in specs.values())


# Fields of this package's configs that are options of BenchMARL's algorithm.
OPTIONS = (
    "lr_modifier",
    "optimism",
    "channels",
    "head_gain",
    "num_components",
    "temperature",
    "strength",
    "consistency",
    "modified_share",
    "scale_bound",
    "scale_gain",
)


@dataclass
class AgentMixerConfig(MappoConfig):
    """Options of :class:`AgentMixer`: BenchMARL's ``MappoConfig``, and this package's.

    ``None`` is the default of :class:`~torchrl_agentmixer.algorithms.AgentMixerConfig` (discrete
    actions) or :class:`~torchrl_agentmixer.algorithms.ContinuousAgentMixerConfig` (continuous
    actions), whose fields have the same names.

    Args:
        lr_modifier: learning rate of the Policy Modifier.
        optimism: share by which negative normalized advantages are reduced.
        channels, head_gain, num_components: of the Policy Modifier.
        strength, modified_share: of the joint policy.
        temperature, consistency: discrete actions.
        scale_bound, scale_gain: continuous actions.

    Raises:
        ValueError: when a policy is built, for an option of the other action type.

    Examples:
        >>> config = AgentMixerConfig.get_from_yaml()
        >>> config.clip_epsilon, config.strength
        (0.2, None)
    """

    lr_modifier: float | None = None
    optimism: Any = None
    channels: int | None = None
    head_gain: float | None = None
    num_components: int | None = None
    temperature: Any = None
    strength: Any = None
    consistency: Any = None
    modified_share: Any = None
    scale_bound: float | None = None
    scale_gain: float | None = None

    @classmethod
    def get_from_yaml(cls, path: str | None = None) -> AgentMixerConfig:
        """Read a YAML file; by default, the values of BenchMARL's MAPPO."""
        if path is not None:
            return super().get_from_yaml(path)
        return cls(**vars(MappoConfig.get_from_yaml()))

    @staticmethod
    def associated_class() -> type[AgentMixer]:
        return AgentMixer


class _Annealing(Callback):
    """Callback that anneals the joint policies after each update."""

    def __init__(self, algorithm: AgentMixer) -> None:
        super().__init__()
        self.algorithm = algorithm

    def on_train_end(self, training_td: TensorDictBase, group: str) -> None:
        if group in self.algorithm.policies:
            self.algorithm.policies[group].anneal(self.algorithm.progress)


class _Flat(nn.Module):
    """Flatten the ``ndims`` trailing dimensions of entries, and concatenate them."""

    def __init__(self, ndims: list[int]) -> None:
        super().__init__()
        self.ndims = ndims

    def forward(self, *entries: torch.Tensor) -> torch.Tensor:
        parts = [entry.flatten(-n).float() for entry, n in zip(entries, self.ndims, strict=True)]
        return torch.cat(parts, -1)


def _for_benchmarl(policy: AgentMixerPolicy, group: str) -> ProbabilisticTensorDictSequential:
    """Convert the joint policy to BenchMARL's log-probability key and shape."""
    *modules, joint = policy.module
    build = joint.distribution_class
    return ProbabilisticTensorDictSequential(
        *modules,
        ProbabilisticTensorDictModule(
            in_keys=dict(zip(joint.dist_keys, joint.in_keys, strict=True)),
            out_keys=[(group, "action")],
            distribution_class=lambda **params: TeamDistribution(build(**params)),  # type: ignore[arg-type]
            return_log_prob=True,
            log_prob_keys=[(group, "log_prob")],
            default_interaction_type=InteractionType.RANDOM,
        ),
    )
