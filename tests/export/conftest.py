"""Fixtures of the tests of exported actors."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter import _registration


@pytest.fixture(autouse=True, scope="session")
def _one_registry():
    """Build PyTorch's table of ONNX operators once, which takes two seconds per export."""
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
    """Draw all parameters of a policy from a normal distribution, so that none are equal."""

    def randomize(policy: nn.Module, std: float = 0.4) -> nn.Module:
        for parameter in policy.parameters():
            nn.init.normal_(parameter, std=std)
        return policy

    return randomize
