"""A new joint policy in fifty lines: a scale relative to the individual policies' scale.

    python examples/own_joint_policy.py --frames 200000

The Policy Modifier writes ``scale_individual * exp(b * tanh(x))`` in place of a scale of its own.
With a small ``head_gain`` the team starts as MAPPO, and the individual scales are trained as
MAPPO's. ``docs/contributing.md`` explains the steps.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from torchrl_agentmixer import AgentGroup, AgentMixerPolicy, PolicyModifier
from torchrl_agentmixer.algorithms import (
    ContinuousAgentMixer,
    ContinuousAgentMixerConfig,
    register_algorithm,
)
from torchrl_agentmixer.config import ExperimentConfig
from torchrl_agentmixer.experiment import run


class RelativeScaleModifier(PolicyModifier):
    """Joint scale relative to the individual scale; ``scale_bound`` is the bound ``b``."""

    def output(self, group: AgentGroup, x: torch.Tensor) -> torch.Tensor:
        return (self.options.scale_bound * torch.tanh(x)).exp()

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        tensordict = super().forward(tensordict)
        for group in self.groups:
            key = self.key(group, "joint_scale")
            tensordict[key] = tensordict[key] * tensordict[self.key(group, "scale")]
        return tensordict


class RelativeScalePolicy(AgentMixerPolicy):
    """The joint policy with this Modifier; the individual scales are trained."""

    modifier_class = RelativeScaleModifier

    @classmethod
    def from_env(cls, env: EnvBase, **kwargs) -> RelativeScalePolicy:
        return super().from_env(env, **kwargs).requires_grad_(True)


class RelativeScale(ContinuousAgentMixer):
    """AgentMixer on this joint policy."""

    policy_class = RelativeScalePolicy


def main(seed: int, frames: int) -> dict[str, float]:
    register_algorithm("relative_scale", RelativeScale, ContinuousAgentMixerConfig)
    env = {"name": "vmas/predator_prey", "num_envs": 200, "total_frames": frames, "eval_envs": 64}
    env |= {"frames_per_batch": 20_000, "eval_interval": frames, "eval_steps": 100}
    returns = {}
    for name in ("agent_mixer_continuous", "relative_scale"):
        algorithm = {"name": name, "num_components": 0, "ratio": "team"}  # a joint scale
        values = {"env": env, "algorithm": algorithm, "seed": seed}
        values |= {"plots": False, "num_threads": 1}
        row = run(ExperimentConfig.from_dict(values), tempfile.mkdtemp())
        returns[name] = row["eval_return"]
        print(f"{name}: return of the modes {returns[name]:.2f}")
    return returns


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=200_000)
    main(**vars(parser.parse_args()))
