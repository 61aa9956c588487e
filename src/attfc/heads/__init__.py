"""Heads: everything that turns embeddings, labels and keys into a loss (see docs/heads.md)."""

from attfc.heads.attfc import AttFC
from attfc.heads.center_table import CenterTable
from attfc.heads.class_center import generative_class_center
from attfc.heads.container import Container
from attfc.heads.dcp import DCP
from attfc.heads.dcq import DCQ
from attfc.heads.full_fc import FullFC
from attfc.heads.head import Head
from attfc.heads.image_memory import ImageMemory
from attfc.heads.partial_fc import PartialFC
from attfc.heads.row_store import RowStore

__all__ = [
    "DCP",
    "DCQ",
    "AttFC",
    "CenterTable",
    "Container",
    "FullFC",
    "Head",
    "ImageMemory",
    "PartialFC",
    "RowStore",
    "generative_class_center",
]
