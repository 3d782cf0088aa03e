"""AgentMixer and MA-MuJoCo in `BenchMARL <https://github.com/facebookresearch/BenchMARL>`_.

Import this package before ``benchmarl``: it adapts BenchMARL to this TorchRL, and registers
``algorithm=agentmixer`` and ``task=mamujoco/...`` with Hydra. See ``docs/benchmarl.md``
for the installation.
"""

from __future__ import annotations

from torchrl_agentmixer.benchmarl._compatibility import load_benchmarl

load_benchmarl()

from benchmarl.algorithms import algorithm_config_registry  # noqa: E402
from benchmarl.environments import task_config_registry  # noqa: E402
from hydra.core.config_store import ConfigStore  # noqa: E402

from torchrl_agentmixer.benchmarl.algorithm import AgentMixer, AgentMixerConfig  # noqa: E402
from torchrl_agentmixer.benchmarl.mamujoco import (  # noqa: E402
    MaMujocoClass,
    MaMujocoTask,
    TaskConfig,
)
from torchrl_agentmixer.benchmarl.team_distribution import TeamDistribution  # noqa: E402

__all__ = ["AgentMixer", "AgentMixerConfig", "MaMujocoClass", "MaMujocoTask", "TeamDistribution"]

algorithm_config_registry["agentmixer"] = AgentMixerConfig
_store = ConfigStore.instance()
_store.store(group="algorithm", name="agentmixer_config", node=AgentMixerConfig)
_store.store(group="algorithm", name="agentmixer", node=AgentMixerConfig.get_from_yaml())
for _name, _task in MaMujocoTask.__members__.items():
    task_config_registry[f"mamujoco/{_name.lower()}"] = _task
    _config = TaskConfig(**_task.get_from_yaml().config)
    _store.store(group="task/mamujoco", name=_name.lower(), node=_config)
