"""Inputs of IGCMixture for tests, and the mixture of Eq. 12 by enumeration in plain Python."""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import strategies as st

from torchrl_agentmixer.distributions import IGCMixture

NAMES = ("temperature", "strength", "consistency", "modified_share")


@st.composite
def inputs(draw, dtypes=(torch.float64,)):
    """Logits without near ties, perturbation, component logits, and a mask or None."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    n, m, k = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    dtype = draw(st.sampled_from(dtypes))

    def normal(*shape):
        return torch.randn(*batch, *shape, generator=generator, dtype=dtype)

    logits = (normal(n, k) * draw(st.sampled_from([1e-2, 1.0, 10.0]))).round(decimals=3)
    noise = normal(n, m, k) * draw(st.sampled_from([0.0, 1.0, 20.0]))
    weights = normal(m) * draw(st.sampled_from([0.0, 1.0, 10.0]))
    mask = None
    if draw(st.booleans()):
        mask = torch.rand(*batch, n, k, generator=generator) < 0.5
        allowed = torch.randint(k, (*batch, n, 1), generator=generator)
        mask = mask.scatter(-1, allowed, True)
    return logits, noise, weights, mask


@st.composite
def coefficient(draw, low, high):
    """A number, a 0-d tensor, one number per agent, or one per agent and state."""
    kind = draw(st.sampled_from(["number", "0-d", "agents", "states"]))
    seed = draw(st.integers(0, 2**31))

    def build(logits):
        shape = {"agents": (logits.shape[-2], 1), "states": (*logits.shape[:-1], 1)}.get(kind, ())
        generator = torch.Generator().manual_seed(seed)
        value = low + (high - low) * torch.rand(shape, generator=generator, dtype=logits.dtype)
        return value.item() if kind == "number" else value

    return build


def example(batch=(5,), masked=True, dtype=torch.float64, seed=0, **kwargs):
    """A mixture of three agents, four actions and two components, and its inputs."""
    torch.manual_seed(seed)
    logits = torch.randn(*batch, 3, 4, dtype=dtype)
    noise = 3 * torch.randn(*batch, 3, 2, 4, dtype=dtype)
    weights = torch.randn(*batch, 2, dtype=dtype)
    mask = None
    if masked:
        mask = torch.rand(*batch, 3, 4) < 0.6
        mask[..., 1] = True
    kwargs = {"temperature": 0.8, "modified_share": 0.7, **kwargs}
    return IGCMixture(logits, noise, weights, mask, **kwargs), (logits, noise, weights, mask)


# -- Eq. 12 and its mixture, state by state ------------------------------------------------------


def softmax(z, allowed):
    peak = max(value for value, ok in zip(z, allowed, strict=True) if ok)
    e = [math.exp(value - peak) if ok else 0.0 for value, ok in zip(z, allowed, strict=True)]
    return [value / sum(e) for value in e]


def eq_12(logits, x, allowed, tau, strength, consistency, margin=1e-2, bound=0.95):
    """One agent's probabilities in one component, with the paper's formula for the noise."""
    individual = softmax(logits, allowed)
    z = []
    for p, value, ok in zip(individual, x, allowed, strict=True):
        u = bound / (1 + math.exp(-value))
        z.append((math.log(p) - strength * math.log(-math.log(u))) / tau if ok else -math.inf)
    actions = [k for k, ok in enumerate(allowed) if ok]
    star = max(actions, key=lambda k: individual[k])
    for k in actions:
        if k != star:
            z[k] -= consistency * max(z[k] - z[star] + margin, 0.0)
    return softmax(z, allowed)


def states_by_hand(logits, noise, weights, mask, coefficients):
    """Per state, the weights ``[1 + m]`` and probabilities ``[1 + m][n][K]``, as lists."""
    n, k = logits.shape[-2:]
    mask = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask
    defaults = dict(zip(NAMES, (1.0, 1.0, 0.0, 1.0), strict=True))
    per_agent = {
        name: torch.as_tensor(value, dtype=torch.float64)
        .expand(*logits.shape[:-1], 1)
        .reshape(-1, n)
        .tolist()
        for name, value in {**defaults, **coefficients}.items()
    }
    rows = zip(
        logits.reshape(-1, n, k).tolist(),
        noise.reshape(-1, n, noise.shape[-2], k).tolist(),
        weights.reshape(-1, weights.shape[-1]).tolist(),
        mask.reshape(-1, n, k).tolist(),
        strict=True,
    )
    for state, (individual, x, w, allowed) in enumerate(rows):
        values = list(zip(*(per_agent[name][state] for name in NAMES[:3]), strict=True))
        share = per_agent["modified_share"][state][0]
        w = softmax(w, [True] * len(w))
        policies = [[softmax(individual[i], allowed[i]) for i in range(n)]]
        for m in range(len(w)):
            policies.append(
                [eq_12(individual[i], x[i][m], allowed[i], *values[i]) for i in range(n)]
            )
        yield [1 - share, *(share * value for value in w)], policies


def joint_by_hand(policies):
    """Probability of every joint action of independent agents, ``[n_joint]``."""
    ranges = [range(len(agent)) for agent in policies]
    return [
        math.prod(agent[a] for agent, a in zip(policies, joint, strict=True))
        for joint in itertools.product(*ranges)
    ]


def mix(weights, rows):
    """Weighted sum of rows."""
    columns = zip(*rows, strict=True)
    return [sum(w * p for w, p in zip(weights, column, strict=True)) for column in columns]


def table_by_hand(*arguments):
    """Probabilities of all joint actions, ``[states, n_joint]``."""
    rows = [mix(w, map(joint_by_hand, policies)) for w, policies in states_by_hand(*arguments)]
    return torch.tensor(rows, dtype=torch.float64)


# -- enumeration by log_prob ------------------------------------------------------------------


def joint_actions(dist):
    n, k = dist.logits.shape[-2:]
    return torch.tensor(list(itertools.product(range(k), repeat=n)))


def table(dist):
    """``log_prob`` of all joint actions, as probabilities ``[states, n_joint]``."""
    actions = joint_actions(dist)
    actions = actions.reshape(len(actions), *[1] * len(dist.batch_shape), -1)
    log_prob = dist.log_prob(actions.expand(-1, *dist.batch_shape, -1))
    return log_prob.exp().double().reshape(len(actions), -1).T


def entropy_of(probs):
    return -torch.where(probs > 0, probs * probs.log(), 0.0).sum(-1)


def kl_of(probs, others):
    return torch.where(probs > 0, probs * (probs / others).log(), 0.0).sum(-1)
