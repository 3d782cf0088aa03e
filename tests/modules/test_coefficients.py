"""Coefficients of the discrete distributions: their entries and their schedules."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_agentmixer.modules import IGCCoefficients, IGCSchedules
from torchrl_agentmixer.schedules import Schedule


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_written_next_to_the_logits_and_changed_in_place(batch):
    """Nested keys, one number per agent, dtype of the logits."""
    keys = [("teams", "a", "logits"), ("b", "l")]
    write = IGCCoefficients(keys, strength=0.5, consistency=0.0)
    td = TensorDict({}, batch)
    td[keys[0]] = torch.zeros(*batch, 3, 5, dtype=torch.float64)
    td[keys[1]] = torch.zeros(*batch, 2, 4)
    held = write.strength
    write.set(strength=0.25)
    assert held is write.strength
    assert write.in_keys == keys
    out = write(td)
    assert out["teams", "a", "strength"].shape == (*batch, 3, 1)
    assert out["b", "consistency"].shape == (*batch, 2, 1)
    assert out["teams", "a", "strength"].dtype == torch.float64
    assert (out["teams", "a", "strength"] == 0.25).all()
    assert (out["b", "consistency"] == 0.0).all()
    assert set(write.out_keys) == {
        (*key[:-1], name) for key in keys for name in ("strength", "consistency")
    }
    assert set(write.state_dict()) == {"strength", "consistency"}
    with pytest.raises(ValueError, match=r"'temperature'.*consistency, strength"):
        write.set(temperature=1.0)


def test_logits_outside_of_a_group():
    write = IGCCoefficients(["logits"], strength=1.0)
    td = write(TensorDict({"logits": torch.zeros(4, 3, 5)}, [4]))
    assert td["strength"].shape == (4, 3, 1)


def test_coefficients_of_a_past_rollout_do_not_change_with_the_buffers():
    write = IGCCoefficients([("a", "logits")], strength=1.0)
    td = write(TensorDict({"a": {"logits": torch.zeros(4, 3, 5)}}, [4]))
    write.set(strength=0.0)
    assert (td["a", "strength"] == 1.0).all()


def test_annealed_by_their_schedules():
    write = IGCCoefficients(
        ["logits"], strength=Schedule(2.0, 0.0, until=0.5), temperature={"start": 1.0, "end": 0.5}
    )
    assert (write.strength, write.temperature) == (2.0, 1.0)  # before the first step
    write.anneal(0.25)
    assert (write.strength, write.temperature) == (1.0, 0.875)
    write.anneal(1.0)
    assert (write.strength, write.temperature) == (0.0, 0.5)


def test_schedules_by_name():
    schedules = IGCSchedules(strength=0.5, temperature={"start": 2.0, "end": 1.0}).schedules()
    assert list(schedules) == ["strength", "modified_share", "temperature", "consistency"]
    assert [schedule(0.5) for schedule in schedules.values()] == [0.5, 1.0, 1.5, 0.0]
    with pytest.raises(TypeError):
        IGCSchedules(0.5)
