"""Export the decentralized actors of a run: ONNX and torch.export files, and a card.

python examples/export_actors.py runs/grid_predator_prey/agent_mixer/seed_0_... --out exported
python examples/run_exported_team.py exported
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from torchrl_agentmixer import export_decentralized
from torchrl_agentmixer.envs import observation_normalizer
from torchrl_agentmixer.experiment import load_run


def main(run: Path, out: Path, overwrite: bool = False, one_file: bool = False) -> Path:
    algorithm, env, config = load_run(run)
    normalizer, values = observation_normalizer(env), config.to_dict()
    return export_decentralized(
        algorithm.execution_policy,
        out,
        normalization=None if normalizer is None else normalizer.loc_scale_bound(),
        metadata={name: values[name] for name in ("env", "algorithm", "seed")},
        one_file=one_file,
        overwrite=overwrite,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--one-file", action="store_true", help="all agents in one file")
    arguments = parser.parse_args()
    card = main(arguments.run, arguments.out, arguments.overwrite, arguments.one_file)
    for agent in json.loads(card.read_text())["agents"]:
        print(agent["name"], {file["name"]: file["bytes"] for file in agent["files"].values()})
    print(card)
