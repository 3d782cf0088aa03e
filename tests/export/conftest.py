"""What the tests of exported actors share."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter import _registration


@pytest.fixture(autouse=True, scope="session")
def _one_registry():
    """PyTorch's table of ONNX operators, two seconds' work, once instead of at every export."""
    patch = pytest.MonkeyPatch()
    build = functools.cache(_registration.ONNXRegistry.from_torchlib)
    patch.setattr(_registration.ONNXRegistry, "from_torchlib", staticmethod(build))
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def randomized():
    """Give every parameter of a policy a value of its own, so that nothing is equal by chance."""

    def randomize(policy: nn.Module, std: float = 0.4) -> nn.Module:
        for parameter in policy.parameters():
            nn.init.normal_(parameter, std=std)
        return policy

    return randomize
