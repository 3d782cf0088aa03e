"""Inputs of IGCCategorical for tests, and Eq. 12 in numpy."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import strategies as st

FORBIDDEN = -np.inf


@st.composite
def inputs(draw, max_noise=1e6, dtypes=(torch.float32, torch.float64)):
    """Logits (some with ties), perturbation, and mask or None, of one shape and dtype."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch = draw(st.sampled_from([(), (1,), (4,), (2, 3)]))
    n_agents, n_actions = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    shape = (*batch, n_agents, n_actions)
    dtype = draw(st.sampled_from(dtypes))
    logits = torch.randn(shape, generator=generator, dtype=dtype)
    logits = logits * draw(st.sampled_from([1e-6, 1e-2, 1.0, 30.0]))
    if draw(st.booleans()):
        logits = logits.round()
    sizes = [size for size in (0.0, 1.0, 20.0, 1e3, 1e6) if size <= max_noise]
    noise = torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1
    noise = noise * draw(st.sampled_from(sizes))
    mask = None
    if draw(st.booleans()):
        mask = torch.rand(shape, generator=generator) < 0.5
        allowed = torch.randint(n_actions, (*shape[:-1], 1), generator=generator)
        mask = mask.scatter(-1, allowed, True)
    return logits, noise, mask


@st.composite
def coefficient(draw, values):
    """A number, a 0-d tensor, or one number per agent (given the logits)."""
    kind = draw(st.sampled_from(["number", "0-d", "agents"]))
    value = draw(values)

    def build(logits):
        if kind == "number":
            return value
        if kind == "0-d":
            return torch.tensor(value, dtype=logits.dtype)
        return torch.full((*logits.shape[:-1], 1), value, dtype=logits.dtype)

    return build


def log_softmax(values: np.ndarray) -> np.ndarray:
    peak = values.max(-1, keepdims=True)
    return values - peak - np.log(np.exp(values - peak).sum(-1, keepdims=True))


def as_array(value: object, ndim: int) -> np.ndarray:
    array = value.double().numpy() if isinstance(value, torch.Tensor) else np.array(float(value))
    return array if array.ndim else array.reshape((1,) * ndim)


def eq_12(logits, x, mask, tau, strength, consistency=0.0, margin=1e-2, bound=0.95):
    """Probabilities of Eq. 12 with clipping, in float64, with the paper's formula for the noise."""
    logits, ndim = logits.double().numpy(), logits.ndim
    allowed = np.ones(logits.shape, bool) if mask is None else mask.numpy()
    individual = log_softmax(np.where(allowed, logits, FORBIDDEN))
    log_u = math.log(bound) - np.logaddexp(0.0, -x.double().numpy())
    noise = -np.log(-log_u)
    z = (individual + as_array(strength, ndim) * noise) / as_array(tau, ndim)
    star = individual.argmax(-1)[..., None]
    at_star = np.take_along_axis(z, star, -1)
    excess = np.maximum(z - at_star + margin, 0.0)
    is_star = np.arange(logits.shape[-1]) == star
    z = np.where(is_star | ~allowed, z, z - consistency * excess)
    return np.exp(log_softmax(np.where(allowed, z, FORBIDDEN)))


def individual_mode_by_hand(logits, mask):
    """First allowed action of the highest logit, by a Python loop."""
    flat = logits.reshape(-1, logits.shape[-1]).tolist()
    masks = None if mask is None else mask.reshape(-1, logits.shape[-1]).tolist()
    modes = []
    for row, values in enumerate(flat):
        allowed = [k for k in range(len(values)) if masks is None or masks[row][k]]
        modes.append(max(allowed, key=lambda k, values=values: (values[k], -k)))
    return torch.tensor(modes).reshape(logits.shape[:-1])
