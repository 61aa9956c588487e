"""Losses: margins on the positive, softmax over a container of centers, softmax over all classes."""

from attfc.losses.class_softmax import class_softmax
from attfc.losses.container_softmax import container_softmax
from attfc.losses.margins import AdaFace, ArcFace, CombinedMargin, CosFace, Margin
from attfc.losses.streaming_pass import NegativeSum, stream_negatives

__all__ = [
    "AdaFace",
    "ArcFace",
    "CombinedMargin",
    "CosFace",
    "Margin",
    "NegativeSum",
    "class_softmax",
    "container_softmax",
    "stream_negatives",
]
