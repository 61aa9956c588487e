"""Training: the momentum pair, schedules, optimizers, checkpoints and model files; the loop itself is `attfc.training.trainer`."""

from attfc.training.checkpoints.checkpoint import latest_checkpoint, load_checkpoint, prune_checkpoints, save_checkpoint
from attfc.training.checkpoints.random_state import rng_state, set_rng_state
from attfc.training.model_files import load_model, save_model
from attfc.training.momentum import MomentumPair, momentum_at
from attfc.training.optimizers import build_optimizer, parameter_groups
from attfc.training.schedule import build_schedule, learning_rate_factor

__all__ = [
    "MomentumPair",
    "build_optimizer",
    "build_schedule",
    "latest_checkpoint",
    "learning_rate_factor",
    "load_checkpoint",
    "load_model",
    "momentum_at",
    "parameter_groups",
    "prune_checkpoints",
    "rng_state",
    "save_checkpoint",
    "save_model",
    "set_rng_state",
]
