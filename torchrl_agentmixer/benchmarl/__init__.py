"""AgentMixer as an algorithm of `BenchMARL <https://github.com/facebookresearch/BenchMARL>`_.

Import this package before ``benchmarl``: it adapts BenchMARL to this TorchRL, and registers
``algorithm=agentmixer`` with Hydra. See ``docs/benchmarl.md`` for the installation.
"""

from __future__ import annotations

from torchrl_agentmixer.benchmarl._compatibility import load_benchmarl

load_benchmarl()

from benchmarl.algorithms import algorithm_config_registry  # noqa: E402
from hydra.core.config_store import ConfigStore  # noqa: E402

from torchrl_agentmixer.benchmarl.algorithm import AgentMixer, AgentMixerConfig  # noqa: E402
from torchrl_agentmixer.benchmarl.team_distribution import TeamDistribution  # noqa: E402

__all__ = ["AgentMixer", "AgentMixerConfig", "TeamDistribution"]

algorithm_config_registry["agentmixer"] = AgentMixerConfig
_store = ConfigStore.instance()
_store.store(group="algorithm", name="agentmixer_config", node=AgentMixerConfig)
_store.store(group="algorithm", name="agentmixer", node=AgentMixerConfig.get_from_yaml())
