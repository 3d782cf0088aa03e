"""Ranges of hyperparameters."""

from __future__ import annotations

_POSITIVE = ("lr", "temperature", "alpha_init", "scale_bound")
_NOT_NEGATIVE = (
    "adam_eps",
    "clip_epsilon",
    "clip_value",
    "critic_coeff",
    "entropy_coeff",
    "head_gain",
    "information_coeff",
    "latent_entropy_coeff",
    "learner_coeff",
    "lr_latent",
    "lr_modifier",
    "memory_dim",
    "num_components",
    "strength",
)
_AT_LEAST_ONE = (
    "actor_hidden",
    "batch_size",
    "channels",
    "critic_hidden",
    "discriminator_hidden",
    "embed_dim",
    "epochs",
    "expert_hidden",
    "gradient_steps",
    "latent_hidden",
    "mixer_dim",
    "num_blocks",
    "num_heads",
    "num_latents",
    "num_minibatches",
    "replay_size",
    "sequence_length",
)
_FRACTIONS = (
    "consistency",
    "epsilon",
    "expert_share",
    "gae_lambda",
    "gamma",
    "modified_share",
    "optimism",
)

# Interval of each hyperparameter by name, of all methods, for `check_fields`.
RANGES: dict[str, str] = {
    **dict.fromkeys(_POSITIVE, "(0, inf)"),
    **dict.fromkeys(("huber_delta", "max_grad_norm"), "(0, inf]"),
    **dict.fromkeys(_NOT_NEGATIVE, "[0, inf)"),
    **dict.fromkeys(_AT_LEAST_ONE, "[1, inf)"),
    **dict.fromkeys(_FRACTIONS, "[0, 1]"),
    "guider_clip": "(1, inf]",
    "target_rate": "(0, 1]",
}
