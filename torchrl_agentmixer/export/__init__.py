"""Export of decentralized actors as ``torch.export`` programs and ONNX models."""

from __future__ import annotations

from torchrl_agentmixer.export.actors import AgentActor, TeamActor, agent_actors
from torchrl_agentmixer.export.card import SCHEMA_VERSION
from torchrl_agentmixer.export.decentralized import export_decentralized

__all__ = ["SCHEMA_VERSION", "AgentActor", "TeamActor", "agent_actors", "export_decentralized"]
