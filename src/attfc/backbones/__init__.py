"""Backbones: a face image in, an embedding out. `create_backbone` builds one by name."""

from attfc.backbones.registry import BackboneInfo, backbone_names, create_backbone, list_backbones

__all__ = ["BackboneInfo", "backbone_names", "create_backbone", "list_backbones"]
