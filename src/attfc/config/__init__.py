"""Typed configuration: what a run's options are, and how presets, profiles and `key=value` overrides become one of them."""

from attfc.config.layers import Asked, apply_overrides, config_to_yaml, load_config, preset_names, read_preset
from attfc.config.schema import RunConfig, SourceConfig

__all__ = [
    "Asked",
    "RunConfig",
    "SourceConfig",
    "apply_overrides",
    "config_to_yaml",
    "load_config",
    "preset_names",
    "read_preset",
]
