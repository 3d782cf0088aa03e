"""Critics."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torch.nn import functional as F
from torchrl.modules import ValueNorm

from torchrl_agentmixer.modules import (
    CentralCritic,
    DecentralizedCritic,
    JointActionCritic,
    value_module,
)


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_central_critic_is_its_transcription(batch):
    critic = CentralCritic(7, hidden=(6, 4))
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.normal_()
    p = list(critic.parameters())
    state = torch.randn(*batch, 7)
    x = F.layer_norm(state, (7,), p[0], p[1])
    for i, width in ((2, 6), (6, 4)):
        x = F.layer_norm((x @ p[i].mT + p[i + 1]).relu(), (width,), p[i + 2], p[i + 3])
    torch.testing.assert_close(critic(state), x @ p[10].mT + p[11])
    with pytest.raises(ValueError, match=r"\[\*B, 7\], got \(5, 8\)"):
        critic(torch.zeros(5, 8))
    with pytest.raises(ValueError, match="`state_dim` >= 1, got 0"):
        CentralCritic(0)


@pytest.mark.parametrize("share_params", [False, True])
def test_decentralized_critic_reads_its_own_observation_only(share_params):
    critic = DecentralizedCritic(3, 5, share_params=share_params)
    observation = torch.randn(4, 3, 5)
    values = critic(observation)
    assert values.shape == (4, 3, 1)
    poisoned = torch.full_like(observation, math.nan)
    poisoned[:, 1] = observation[:, 1]
    assert torch.equal(critic(poisoned)[:, 1], values[:, 1])


def test_value_module_with_value_norm_works_in_the_unit_of_the_return():
    class Mirror(ValueNorm):
        """Returns have mean 10 and standard deviation 3."""

        def normalize(self, value):
            return (value - 10) / 3

        def denormalize(self, value):
            return 3 * value + 10

        def update(self, value):
            raise NotImplementedError

    critic = CentralCritic(7)
    td = TensorDict({"nested": {"state": torch.randn(4, 7)}}, [4])
    raw = value_module(critic, ("nested", "state"), ("nested", "value"))(td.clone())
    norm = value_module(critic, ("nested", "state"), ("nested", "value"), Mirror(shape=1))
    torch.testing.assert_close(norm(td)["nested", "value"], 3 * raw["nested", "value"] + 10)


def test_joint_action_critic_reads_state_and_all_actions():
    critic = JointActionCritic(4, 6, hidden=(8,))
    state, action = torch.randn(5, 4, requires_grad=True), torch.randn(5, 3, 2, requires_grad=True)
    value = critic(state, action)
    assert value.shape == (5, 1)
    for grad in torch.autograd.grad(value.sum(), (state, action)):
        assert (grad != 0).all()
    central = CentralCritic(10, hidden=(8,))
    central.load_state_dict(critic.value.state_dict())
    torch.testing.assert_close(central(torch.cat([state, action.flatten(1)], -1)), value)
    with pytest.raises(ValueError, match="state of 4 entries and a joint action of 6, got 5 and 6"):
        critic(torch.zeros(2, 5), torch.zeros(2, 3, 2))
    with pytest.raises(ValueError, match="`action_dim` >= 1, got 0"):
        JointActionCritic(4, 0)
