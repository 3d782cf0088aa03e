"""BenchMARL's Hydra command with AgentMixer.

.. code-block:: console

    python -m torchrl_agentmixer.benchmarl algorithm=agentmixer task=vmas/balance
"""

from __future__ import annotations

from benchmarl.run import hydra_experiment

if __name__ == "__main__":
    hydra_experiment()
