"""AgentMixer under TorchRL's own trainer and its Hydra configs: PPOTrainer, unchanged.

    python examples/ppo_trainer.py
    python examples/ppo_trainer.py seed=1 optimizer.lr=5e-4 trainer.num_epochs=10

``examples/conf_trainer/ppo.yaml`` takes TorchRL's config groups (``trainer: ppo`` and others) and
names this package's parts by ``_target_``.
"""

from __future__ import annotations

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torchrl.trainers.algorithms import configs  # noqa: F401  (registers TorchRL's config groups)

from torchrl_agentmixer.modules import value_module
from torchrl_agentmixer.training import evaluate


@hydra.main(version_base="1.3", config_path="conf_trainer", config_name="ppo")
def main(config: DictConfig) -> float:
    torch.manual_seed(config.seed)
    env = instantiate(config.env)
    policy = instantiate(config.policy, env=env)
    critic = instantiate(config.critic, state_dim=env.observation_spec["state"].shape[-1])
    # In YAML, `${policy}` would be built once for the collector and once more for the loss.
    trainer = instantiate(
        config.trainer,
        collector=instantiate(config.collector, create_env_fn=env, policy=policy),
        loss_module=instantiate(
            config.loss, actor_network=policy, critic_network=value_module(critic)
        ),
    )
    test = instantiate(config.env, seed=config.seed + 1)

    def score() -> float:
        return float(evaluate(policy.decentralized(), test, max_steps=100).returns.mean())

    before = score()
    trainer.train()
    after = score()
    print(f"return of the decentralized modes: {before:.3f} before, {after:.3f} after")
    return after


if __name__ == "__main__":
    main()
