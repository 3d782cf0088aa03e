"""AgentMixer on BenchMARL's MAPPO."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
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

from torchrl_agentmixer.algorithms.schedules import as_schedule
from torchrl_agentmixer.benchmarl.team_distribution import TeamDistribution
from torchrl_agentmixer.groups import AgentGroup
from torchrl_agentmixer.modules import ModifierGroup, PolicyModifier
from torchrl_agentmixer.policies import AgentMixerPolicy

_COEFFICIENTS = ("temperature", "strength", "consistency")


class AgentMixer(Mappo):
    """AgentMixer (`arXiv 2401.08728 <https://arxiv.org/abs/2401.08728>`_) as a BenchMARL algorithm.

    BenchMARL's model is the individual policy; a Policy Modifier and an IGC distribution around it
    make the joint policy that is collected with and trained, by BenchMARL's PPO loss and critic.
    The Modifier reads the task's state, or all observations of the group where it has none. Each
    group of agents is a team with a Modifier of its own. The team's advantage is the mean over its
    agents, normalized over the batch.

    BenchMARL's deterministic evaluation runs the individual modes, what :meth:`decentralized`
    returns; a stochastic one (``evaluation_deterministic_actions=False``) the joint policy.

    Args:
        **kwargs: the fields of :class:`AgentMixerConfig`, and those of BenchMARL's ``Mappo``.
    """

    def __init__(
        self,
        lr_modifier: float | None,
        channels: int,
        head_gain: float | None,
        scale_bound: float,
        num_components: int,
        temperature: Any,
        strength: Any,
        consistency: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.lr_modifier = lr_modifier
        self.channels = channels
        self.head_gain = head_gain
        self.scale_bound = scale_bound
        self.num_components = num_components
        values = (temperature, strength, consistency)
        self.schedules = {
            name: as_schedule(value) for name, value in zip(_COEFFICIENTS, values, strict=True)
        }
        self.policies: dict[str, AgentMixerPolicy] = {}
        # A new list: the given one is the user's, and may serve another experiment.
        self.experiment.callbacks = [*self.experiment.callbacks, _Annealing(self)]

    def decentralized(self, deterministic: bool = True) -> TensorDictSequential:
        """What is deployed: every group's individual policies, on their own observations.

        Args:
            deterministic (bool): act by the individual modes, or sample.

        Returns:
            TensorDictSequential: reads what BenchMARL's model reads, and masks; shares parameters.
        """
        return TensorDictSequential(
            *(self.policies[group].decentralized(deterministic) for group in self.policies)
        )

    def anneal(self, group: str, progress: float) -> None:
        """Set a group's coefficients to their values at ``progress`` in [0, 1] of training."""
        policy = self.policies[group]
        policy.set_coefficients(
            **{name: self.schedules[name](progress) for name in self._annealed(policy)}
        )

    def _annealed(self, policy: AgentMixerPolicy) -> list[str]:
        return [name for name in self.schedules if name in policy.coefficient_names]

    def _get_policy_for_loss(
        self, group: str, model_config: ModelConfig, continuous: bool
    ) -> ProbabilisticTensorDictSequential:
        agents = self._agents(group, continuous)
        individual = super()._get_policy_for_loss(group, model_config, continuous)
        actor = TensorDictSequential(*list(individual.module)[:-1])
        state, state_size = self._state_module(group)
        head_gain = 0.01 if continuous else 2.0
        modifier = PolicyModifier(
            [
                ModifierGroup(
                    n_agents=agents.n_agents,
                    params_dim=agents.params_dim,
                    out_dim=agents.action_dim,
                    output="scale" if continuous else "perturbation",
                )
            ],
            state_size,
            channels=self.channels,
            head_gain=head_gain if self.head_gain is None else self.head_gain,
            num_components=0 if continuous else self.num_components,
            scale_bound=self.scale_bound,
        )
        policy = AgentMixerPolicy(
            [agents],
            [state, actor],
            modifier,
            state_key=state.out_keys[0],
            distribution="tanh_normal" if self.use_tanh_normal else "normal",
        )
        for module in policy.module:
            if module is not actor:  # BenchMARL's is on the device, parts of its GRU on "meta"
                module.to(self.device)
        self.policies[group] = policy
        self.anneal(group, 0.0)
        return _for_benchmarl(policy, group)

    def _get_parameters(self, group: str, loss: LossModule) -> dict[str, Iterable]:
        """BenchMARL's, with the Modifier's in a parameter group that has its own learning rate."""
        parameters = super()._get_parameters(group, loss)
        modifier = list(self.policies[group].modifier.parameters())
        known = {id(parameter) for parameter in modifier}
        actor = [p for p in parameters["loss_objective"] if p.requires_grad and id(p) not in known]
        lr = 5e-3 if self.policies[group].groups[0].discrete else 3e-5
        parameters["loss_objective"] = [
            {"params": actor},
            {"params": modifier, "lr": lr if self.lr_modifier is None else self.lr_modifier},
        ]
        return parameters

    def process_batch(self, group: str, batch: TensorDictBase) -> TensorDictBase:
        """BenchMARL's advantages, averaged over agents and normalized: the team is one learner.

        BenchMARL's MAPPO does not normalize. The joint scale of continuous actions learns slowly:
        while the critic's values are too high, all samples look bad, and the means would run away
        from all of them.
        """
        batch = super().process_batch(group, batch)
        advantage = batch.get((group, "advantage"))  # [*B, n, 1]
        team = advantage.mean(-2, keepdim=True)
        team = (team - team.mean()) / team.std().clamp_min(1e-6)
        return batch.set((group, "advantage"), team.expand_as(advantage).clone())

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
        """Writes what the Modifier reads, ``[*B, s]``; and ``s``."""
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


@dataclass
class AgentMixerConfig(MappoConfig):
    """Options of :class:`AgentMixer`; :meth:`get_from_yaml` has values for all.

    Args:
        lr_modifier: learning rate of the Policy Modifier; ``None`` is 5e-3 for discrete and 3e-5
            for continuous actions.
        channels: width of the Modifier's tokens.
        head_gain: gain of the Modifier's last layer; ``None`` is 2 for discrete and 0.01 for
            continuous actions.
        scale_bound: largest joint scale of continuous actions.
        num_components: of the mixture of discrete actions; 0 is the paper's single Eq. 12.
        temperature: tau of Eq. 12, a number or the arguments of a
            :class:`~torchrl_agentmixer.algorithms.schedules.Schedule`, as the next two.
        strength: of the noise of Eq. 12.
        consistency: 0 is the paper's, 1 keeps the individual modes exactly.

    The others are BenchMARL's ``MappoConfig``'s.

    Examples:
        >>> config = AgentMixerConfig.get_from_yaml()
        >>> config.num_components, config.strength
        (16, {'start': 3.0, 'end': 0.0, 'until': 0.5})
    """

    lr_modifier: float | None
    channels: int
    head_gain: float | None
    scale_bound: float
    num_components: int
    temperature: Any
    strength: Any
    consistency: Any

    @classmethod
    def get_from_yaml(cls, path: str | None = None) -> AgentMixerConfig:
        """Read ``path``, or the ``agentmixer.yaml`` beside this module."""
        return super().get_from_yaml(path or str(Path(__file__).with_name("agentmixer.yaml")))

    @staticmethod
    def associated_class() -> type[AgentMixer]:
        return AgentMixer


class _Annealing(Callback):
    """Sets the coefficients after each update, before BenchMARL collects with them."""

    def __init__(self, algorithm: AgentMixer) -> None:
        super().__init__()
        self.algorithm = algorithm

    def on_train_end(self, training_td: TensorDictBase, group: str) -> None:
        if group in self.algorithm.policies:
            experiment = self.algorithm.experiment
            total = experiment.config.get_max_n_frames(experiment.on_policy)
            self.algorithm.anneal(group, min(1.0, experiment.total_frames / total))


class _Flat(nn.Module):
    """Flattens entries of ``ndims`` trailing dimensions, and concatenates them."""

    def __init__(self, ndims: list[int]) -> None:
        super().__init__()
        self.ndims = ndims

    def forward(self, *entries: torch.Tensor) -> torch.Tensor:
        parts = [entry.flatten(-n).float() for entry, n in zip(entries, self.ndims, strict=True)]
        return torch.cat(parts, -1)


def _for_benchmarl(policy: AgentMixerPolicy, group: str) -> ProbabilisticTensorDictSequential:
    """The joint policy with its log-probability in BenchMARL's place and shape."""
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
