"""Run an exported team with onnxruntime, without torch: python run_exported_team.py FOLDER"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


class Actor:
    def __init__(self, folder, card):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        file, self.card = Path(folder) / card["files"]["onnx"]["name"], card
        self.session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
        self.reset()

    def reset(self, batch=1):  # where an episode starts
        card = self.card["memory"]
        self.memory = {"memory": np.zeros((batch, card["size"]), np.float32)} if card else {}

    def act(self, **inputs):  # observation [batch, o], float32, and action_mask [batch, k], bool
        outputs = ["action", "next_memory"] if self.memory else ["action"]
        action, *memory = self.session.run(outputs, inputs | self.memory)
        self.memory = dict(zip(self.memory, memory, strict=True))
        return action


def load_team(folder):
    cards = json.loads((Path(folder) / "card.json").read_text())["agents"]
    return {card["name"]: Actor(folder, card) for card in cards}


if __name__ == "__main__":
    for name, actor in load_team(sys.argv[1]).items():
        inputs = {k: x for k, x in actor.card["inputs"].items() if k != "memory"}
        sensors = {k: np.ones((1, x["shape"][1]), x["dtype"]) for k, x in inputs.items()}  # yours
        print(name, *[actor.act(**sensors)[0] for step in range(3)])
