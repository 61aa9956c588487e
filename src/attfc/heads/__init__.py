"""Heads: everything that turns embeddings, labels and keys into a loss (see docs/heads.md)."""

from attfc.heads.attfc import AttFC
from attfc.heads.banks.images import ImageMemory
from attfc.heads.banks.recent import Container
from attfc.heads.banks.row_store import RowStore
from attfc.heads.banks.table import CenterTable
from attfc.heads.class_center import generative_class_center
from attfc.heads.dcp import DCP
from attfc.heads.dcq import DCQ
from attfc.heads.full_fc import FullFC
from attfc.heads.head import Head
from attfc.heads.partial_fc import PartialFC

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
