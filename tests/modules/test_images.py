"""Image observations: encoder, actors, critics and learning."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from torchrl.data import Categorical, Unbounded

from tests.envs.any_env import AnyEnv
from torchrl_agentmixer import export_decentralized
from torchrl_agentmixer.algorithms import available_algorithms, make_algorithm
from torchrl_agentmixer.envs import team_env
from torchrl_agentmixer.modules import CategoricalActor, CentralCritic, DecentralizedCritic
from torchrl_agentmixer.modules.images import ImageEncoder
from torchrl_agentmixer.training import evaluate

SHAPES = [(1, 5, 5), (3, 1, 7), (2, 16, 9)]


def encoded(weights, image):
    """Transcription: three convolutions of stride 2 with ReLU. ``weights`` are in order."""
    for weight, bias in zip(weights[::2], weights[1::2], strict=True):
        image = F.conv2d(image, weight, bias, stride=2, padding=1).clamp(min=0)
    return image.flatten(1)


@pytest.mark.parametrize("shape", SHAPES)
def test_encoder(shape):
    encoder = ImageEncoder(shape)
    image, rest = torch.rand(4, *shape), torch.rand(4, 3)
    expected = torch.cat([encoded(list(encoder.parameters()), image), rest], -1)
    assert expected.shape[-1] == encoder.features_dim + 3
    torch.testing.assert_close(encoder(torch.cat([image.flatten(1), rest], -1)), expected)


@pytest.mark.parametrize("share_params", [False, True])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_an_actor_reads_its_own_image(batch, share_params):
    shape = (2, 6, 5)
    actor = CategoricalActor(3, math.prod(shape), 4, image_shape=shape, share_params=share_params)
    images = torch.rand(*batch, 3, *shape)
    logits, _ = actor(images)
    assert logits.shape == (*batch, 3, 4)
    other = images.clone()
    other[..., 1, :, :, :] = torch.rand(shape)
    changed = (actor(other)[0] != logits).any(-1)
    assert changed[..., 1].all()
    assert not changed[..., [0, 2]].any()


def test_convolutions_of_separate_agents():
    shape = (1, 5, 5)
    actor = CategoricalActor(2, 25, 4, image_shape=shape, hidden=(8,), input_norm=False)
    image = torch.rand(6, 2, *shape)
    _, features = actor(image)
    for agent in range(2):
        own = actor.body.params[agent].flatten_keys(".")
        convolutions = [own[f"0.net.{i}.{leaf}"] for i in (0, 2, 4) for leaf in ("weight", "bias")]
        x = encoded(convolutions, image[:, agent]) @ own["1.weight"].mT + own["1.bias"]
        expected = F.layer_norm(x.clamp(min=0), (8,), own["3.weight"], own["3.bias"])
        torch.testing.assert_close(features[:, agent], expected, rtol=1e-4, atol=1e-5)


def test_critics():
    shape = (2, 6, 5)
    assert DecentralizedCritic(3, 60, image_shape=shape)(torch.rand(4, 3, *shape)).shape == (
        4,
        3,
        1,
    )
    assert CentralCritic(180, image_shape=(6, 6, 5))(torch.rand(4, 180)).shape == (4, 1)
    with pytest.raises(ValueError, match="at least one hidden width after an image encoder"):
        CentralCritic(60, image_shape=shape, hidden=())


def test_wrong_shape():
    actor = CategoricalActor(3, 60, 4, image_shape=(2, 6, 5))
    with pytest.raises(ValueError, match=r"of shape \[\*B, 3, 2, 6, 5\], got \(4, 3, 60\)"):
        actor(torch.rand(4, 3, 60))


def test_methods_without_images_refuse_them():
    env = team_env(AnyEnv(Categorical(3, shape=(2,)), Unbounded((2, 1, 5, 5)), batch=(4,)))
    methods = available_algorithms(env)
    assert {"mappo", "ippo", "happo", "agent_mixer"} == set(methods)
    with pytest.raises(ValueError, match=r"MAT: expected .* got images \[1, 5, 5\] of group"):
        make_algorithm("mat", env, 100)


class Pixel(AnyEnv):
    """Each agent is paid for the number of the row in which its only bright pixel is."""

    def __init__(self, num_envs):
        super().__init__(
            Categorical(3, shape=(2,)), Unbounded((2, 1, 3, 3)), batch=(num_envs,), rewards="team"
        )

    def _reset(self, tensordict=None, **kwargs):
        result = super()._reset()
        pixel = torch.randint(9, (*self.batch_size, 2))
        self.row = pixel // 3
        result["agents", "observation"] = F.one_hot(pixel, 9).unflatten(-1, (1, 3, 3)).float()
        return result

    def _step(self, tensordict):
        right = (tensordict["agents", "action"] == self.row).float().mean(-1, keepdim=True)
        result = self._reset()
        done = torch.ones_like(result["done"])
        return result.update({"reward": right, "done": done, "terminated": done})


def test_learns_from_images():
    torch.manual_seed(0)
    env = team_env(Pixel(500))
    options = {"lr": 5e-3, "epochs": 5, "num_minibatches": 1}
    algorithm = make_algorithm("mappo", env, 20_000, options)
    first = evaluate(algorithm.execution_policy, env, max_steps=1).returns.mean()
    for _ in range(20):
        algorithm.update(env.rollout(1, algorithm.policy))
    last = evaluate(algorithm.execution_policy, env, max_steps=1).returns.mean()
    assert first < 0.6  # 1/3 for a random policy
    assert last > 0.95


@pytest.mark.parametrize("options", [{}, {"share_params": True, "input_norm": True}])
def test_exported_actors_compute_the_policy(options, tmp_path):
    pytest.importorskip("onnxruntime")
    env = team_env(AnyEnv(Categorical(3, shape=(2,)), Unbounded((2, 2, 6, 5)), batch=(4,)))
    policy = make_algorithm("mappo", env, 100, options).execution_policy
    team = {"agents": (torch.rand(2, 2, 6, 5), torch.rand(2, 2, 6, 5) + 0.5)}
    for normalization in (None, team):  # compared with the policy on random images, in the export
        options = {"normalization": normalization, "overwrite": True}
        export_decentralized(policy, tmp_path / "actors", **options)
