"""MA-MuJoCo as tasks of BenchMARL."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarl.environments.common import Task, TaskClass
from benchmarl.utils import DEVICE_TYPING, _read_yaml_config
from torchrl.data import Composite
from torchrl.envs import EnvBase, RewardSum, Transform

from torchrl_agentmixer.envs import make_env


@dataclass
class TaskConfig:
    """Options of a task; ``mamujoco.yaml`` has the defaults of BenchMARL's tasks.

    They are those of :class:`~torchrl_agentmixer.envs.MaMujocoEnv`.
    """

    max_steps: int | None
    agent_obsk: Any
    local_categories: Any
    global_categories: list[str]
    partition: Any
    agent_one_hot: bool
    num_threads: int


class MaMujocoClass(TaskClass):
    """A MA-MuJoCo robot: continuous actions, a state, and one reward for all groups.

    ``max_steps`` truncates an episode, so that values are bootstrapped at its end.
    """

    def get_env_fun(
        self,
        num_envs: int,
        continuous_actions: bool,
        seed: int | None,
        device: DEVICE_TYPING,
    ) -> Callable[[], EnvBase]:
        config = copy.deepcopy(self.config)
        return lambda: make_env(
            f"mamujoco/{self.name.lower()}", num_envs=num_envs, seed=seed, device=device, **config
        )

    def supports_continuous_actions(self) -> bool:
        return True

    def supports_discrete_actions(self) -> bool:
        return False

    def has_render(self, env: EnvBase) -> bool:
        return True

    def max_steps(self, env: EnvBase) -> int:
        return env.max_steps

    def group_map(self, env: EnvBase) -> dict[str, list[str]]:
        return env.group_map

    def observation_spec(self, env: EnvBase) -> Composite:
        spec = env.full_observation_spec_unbatched.clone()
        del spec["state"]
        return spec

    def state_spec(self, env: EnvBase) -> Composite | None:
        return Composite(state=env.full_observation_spec_unbatched["state"].clone())

    def action_spec(self, env: EnvBase) -> Composite:
        return env.full_action_spec_unbatched

    def action_mask_spec(self, env: EnvBase) -> Composite | None:
        return None

    def info_spec(self, env: EnvBase) -> Composite | None:
        return None

    def get_reward_sum_transform(self, env: EnvBase) -> Transform:
        return RewardSum(reset_keys=["_reset"])  # one reward, whatever the number of groups

    @staticmethod
    def env_name() -> str:
        return "mamujoco"


class MaMujocoTask(Task):
    """The MA-MuJoCo tasks.

    Examples:
        >>> task = MaMujocoTask.HALF_CHEETAH_6X1.get_from_yaml()
        >>> task.config["agent_obsk"] = 1  # agents observe their neighbors' joints
        >>> env = task.get_env_fun(num_envs=2, continuous_actions=True, seed=0, device="cpu")()
        >>> env.rollout(3)["agents", "action"].shape
        torch.Size([2, 3, 6, 1])
    """

    ANT_2X4 = None
    ANT_2X4D = None
    ANT_4X2 = None
    ANT_8X1 = None
    COUPLED_HALF_CHEETAH_1P1 = None
    HALF_CHEETAH_2X3 = None
    HALF_CHEETAH_6X1 = None
    HOPPER_3X1 = None
    HUMANOID_17X1 = None
    HUMANOID_9_8 = None
    HUMANOID_STANDUP_17X1 = None
    HUMANOID_STANDUP_9_8 = None
    MANY_SEGMENT_ANT_2X3 = None
    MANY_SEGMENT_ANT_3X1 = None
    MANY_SEGMENT_SWIMMER_10X2 = None
    MANY_SEGMENT_SWIMMER_6X1 = None
    PUSHER_3P = None
    REACHER_2X1 = None
    SWIMMER_2X1 = None
    WALKER2D_2X3 = None
    WALKER2D_6X1 = None

    @staticmethod
    def associated_class() -> type[TaskClass]:
        return MaMujocoClass

    def get_from_yaml(self, path: str | None = None) -> TaskClass:
        """Read a YAML file; by default ``mamujoco.yaml``, which all tasks share.

        Raises:
            TypeError: for an unknown or missing option.
        """
        config = _read_yaml_config(path or str(Path(__file__).with_suffix(".yaml")))
        return self.get_task(vars(TaskConfig(**config)))
