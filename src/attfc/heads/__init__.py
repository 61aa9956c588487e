"""Heads: everything that turns embeddings, labels and keys into a loss (see docs/heads.md)."""

from attfc.heads.attfc import AttFC
from attfc.heads.banks.images import ImageMemory
from attfc.heads.banks.recent import RecentCenters
from attfc.heads.banks.row_store import RowStore
from attfc.heads.banks.table import CenterTable
from attfc.heads.centers import KeyAttention, OtherImages, OwnEmbedding, Pairs, generative_class_center
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
    "FullFC",
    "Head",
    "ImageMemory",
    "KeyAttention",
    "OtherImages",
    "OwnEmbedding",
    "Pairs",
    "PartialFC",
    "RecentCenters",
    "RowStore",
    "generative_class_center",
]
