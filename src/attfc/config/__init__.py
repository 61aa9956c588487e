"""Typed configuration: what a run's options are, and how presets, profiles and `key=value` overrides become one of them."""

from attfc.config.overrides import PROFILES, apply_overrides, config_to_yaml, load_config, override_keys, preset_names
from attfc.config.schema import RunConfig, SourceConfig

__all__ = [
    "PROFILES",
    "RunConfig",
    "SourceConfig",
    "apply_overrides",
    "config_to_yaml",
    "load_config",
    "override_keys",
    "preset_names",
]
