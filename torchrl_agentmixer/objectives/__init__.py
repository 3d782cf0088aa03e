"""Loss and advantage modules of AgentMixer and the baselines."""

from __future__ import annotations

from torchrl_agentmixer.objectives.distillation import DistillationLoss, ExpertAdvantage
from torchrl_agentmixer.objectives.happo import HAPPOLoss
from torchrl_agentmixer.objectives.hasac import HASACLoss
from torchrl_agentmixer.objectives.huber_ppo import HuberPPOLoss, optimistic
from torchrl_agentmixer.objectives.magpo import MAGPOLoss
from torchrl_agentmixer.objectives.maven import LatentPolicyLoss, MAVENLoss

__all__ = [
    "DistillationLoss",
    "ExpertAdvantage",
    "HAPPOLoss",
    "HASACLoss",
    "HuberPPOLoss",
    "LatentPolicyLoss",
    "MAGPOLoss",
    "MAVENLoss",
    "optimistic",
]
