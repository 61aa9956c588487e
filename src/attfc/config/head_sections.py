"""The sections about the head: which one, its margin, and what AttFC, DCQ and DCP make and keep class centers from."""

from typing import Annotated, Literal

from pydantic import Field

from attfc.config.option import Positive, Section, Share, option

__all__ = [
    "AttentionConfig",
    "CenterConfig",
    "ContainerConfig",
    "HeadConfig",
    "KeyEncoderConfig",
    "KeysConfig",
    "MarginConfig",
    "NegativesConfig",
]

WITH_KEYS = "head.name=dcq|dcp or head.name=attfc and center.source=keys"
WITH_CONTAINER = "head.name=attfc and negatives.source=container or head.name=attfc and center.table=none"


class HeadConfig(Section):
    """What turns embeddings and labels into a loss."""

    name: Literal["attfc", "full_fc", "partial_fc", "dcq", "dcp"] = option(
        "attfc",
        "the head; full_fc: a trained center per identity; partial_fc: the same, a sample of them per step; attfc, dcq, dcp: centers made from "
        "embeddings",
    )
    interclass_filtering_threshold: Annotated[float, Field(gt=-1, le=1)] | None = option(
        None,
        "negatives with a larger cosine than this are taken for wrong labels",
        unit="cosine",
        null="no negative is taken for a wrong label",
    )
    filtering: Literal["drop", "zero"] = option(
        "drop",
        "what happens to these negatives: they leave the softmax (drop) or count with cosine 0 (zero, as arcface_torch)",
        acts="head.interclass_filtering_threshold!=null",
    )
    block_mib: Annotated[float, Field(gt=0)] = option(
        32.0, "working memory for the pass over the class centers", unit="MiB"
    )
    sample_rate: Annotated[float, Field(gt=0, le=1)] = option(
        0.1, "share of the identities that a step sees; those of the batch always", acts="head.name=partial_fc"
    )
    rows: Literal["device", "host", "file"] = option(
        "device",
        "where the trained centers and their momentum live; host and file bring those of a step to the device",
        acts="head.name=full_fc|partial_fc",
    )
    rows_folder: str | None = option(
        None,
        "folder on a fast disk for the trained centers and their momentum",
        null="none; head.rows=file needs one",
        acts="head.name=full_fc|partial_fc and head.rows=file",
    )
    enter_first: Share = option(
        2 / 3, "share of the batch, from its start, whose keys enter the pool before the loss", acts="head.name=dcp"
    )
    hardest_weight: Annotated[float, Field(ge=0)] = option(
        1.0, "weight of the loss of samples whose identity is not in the pool", acts="head.name=dcp"
    )


class MarginConfig(Section):
    """The margin, which makes the own identity's cosine harder to satisfy, and the scale of all cosines."""

    name: Literal["arcface", "cosface", "combined", "adaface"] = option(
        "cosface",
        "kind of margin: arcface adds an angle, cosface subtracts a cosine, combined does both, adaface adapts to image quality",
    )
    scale: Annotated[float, Field(gt=0)] = option(
        64.0, "factor of all cosines before the softmax; 32 suits a few thousand identities"
    )
    margin: float = option(
        0.4,
        "size of the margin: radians for arcface, cosine for cosface and adaface",
        acts="margin.name=arcface|cosface|adaface",
    )
    m1: Annotated[float, Field(gt=0)] = option(1.0, "factor of the angle", acts="margin.name=combined")
    m2: float = option(0.0, "angle that is added", unit="radians", acts="margin.name=combined")
    m3: float = option(0.4, "cosine that is subtracted", unit="cosine", acts="margin.name=combined")
    h: Annotated[float, Field(gt=0)] = option(
        0.333, "how strongly the margin follows the embedding's length", acts="margin.name=adaface"
    )
    gradient: Literal["exact", "straight_through"] = option(
        "exact", "derivative of the margin: the exact one, or 1 everywhere (straight_through, as the published code)"
    )
    beyond_pi: Literal["linear", "wrap"] = option(
        "linear",
        "where angle and margin together exceed pi: continue in a straight line, or let the cosine turn back (wrap)",
        acts="margin.name=arcface|combined",
    )


class KeysConfig(Section):
    """How an epoch visits the images, and which further images of the same person (keys) come with each."""

    per_query: int = option(
        2, "keys per query: other images of its person", acts="head.name=attfc and center.source=keys"
    )
    distinct: bool = option(
        True, "keys differ from the query and from each other where the person has enough images", acts=WITH_KEYS
    )
    sampling: Literal["each_once", "with_replacement"] = option(
        "each_once", "whether each image comes once per epoch, or images are drawn with replacement"
    )


class KeyEncoderConfig(Section):
    """The key encoder, a slowly following copy of the network that embeds the keys."""

    momentum: Share = option(
        0.999, "share of its old weights that the copy keeps in each step; 0: it is the current network", acts=WITH_KEYS
    )
    momentum_schedule: Literal["constant", "ramp"] = option(
        "constant", "the same momentum in each step, or rising to it from 0.1 (ramp)", acts=WITH_KEYS
    )
    batch_norm: Literal["batch", "averaged"] = option(
        "batch", "statistics of the copy's BatchNorm: of the batch of keys, or averaged over steps", acts=WITH_KEYS
    )


class AttentionConfig(Section):
    """How several keys become one class center: a mean, weighted by their similarity to the query."""

    temperature: Annotated[float, Field(gt=0)] = option(
        1.0,
        "below 1, keys similar to the query weigh more; above 1, all weigh more alike",
        unit="cosine",
        acts="head.name=attfc and center.source=keys",
    )
    include_stored_center: bool = option(
        False,
        "the identity's stored center joins the keys as one more candidate",
        acts="head.name=attfc and center.source=keys",
    )


class CenterConfig(Section):
    """What AttFC makes a class center from, and where the centers of all identities are kept."""

    blend: Annotated[float, Field(ge=0, lt=1)] = option(
        0.0,
        "share of the stored center in the new one; the rest is the new embedding's",
        acts="head.name=attfc and center.source=keys|query|batch",
    )
    source: Literal["keys", "query", "batch", "others"] = option(
        "keys",
        "what it is made from; keys: further images through the key encoder; query: the embedding itself, blended with the stored center; "
        "batch: the person's other image in the batch; others: the remembered embeddings of all other images of the person",
        acts="head.name=attfc",
    )
    table: Literal["none", "device", "host", "file"] = option(
        "none",
        "where the latest center of every identity is kept (2 bytes per number; with center.source=others 2 per number and image, 4 per number "
        "and identity)",
        acts="head.name=attfc",
    )
    table_folder: str | None = option(
        None,
        "folder on a fast disk for this table",
        null="none; center.table=file needs one",
        acts="head.name=attfc and center.table=file",
    )


class ContainerConfig(Section):
    """The container: a store of fixed size with recent class centers, the negatives of AttFC, DCQ and DCP."""

    ratio: Annotated[float, Field(gt=0)] | None = option(
        0.1,
        "slots of the container as a share of the identities; with negatives.source=table the share that is drawn per step",
        null="container.slots says it",
        acts="head.name=attfc|dcq|dcp and container.slots=null",
    )
    slots: Positive | None = option(
        None,
        "slots of the container, or centers drawn per step; overrides container.ratio",
        null="container.ratio says it",
        acts="head.name=attfc|dcq|dcp",
    )
    policy: Literal["fifo", "unique"] = option(
        "fifo",
        "what a new center replaces: the oldest one (fifo), or its identity's own, where that has a slot (unique)",
        acts=WITH_CONTAINER,
    )
    dtype: Literal["float32", "bfloat16", "int8"] = option(
        "float32",
        "how the container stores numbers: 4, 2 or 1 bytes each",
        acts=f"head.name=dcq|dcp or {WITH_CONTAINER}",
    )
    initial: Literal["empty", "random"] = option(
        "empty",
        "what unused slots hold: nothing, or random centers as negatives (as the published code)",
        acts=f"head.name=dcq|dcp or {WITH_CONTAINER}",
    )


class NegativesConfig(Section):
    """Which centers of other identities AttFC compares an embedding with."""

    in_batch: bool = option(
        False, "the centers of the other people in the batch are negatives too", acts="head.name=attfc"
    )
    in_batch_gradient: bool = option(
        False,
        "the batch's own centers push: as negatives they have a gradient, which moves the embeddings they are made of away from other people",
        acts="head.name=attfc and negatives.in_batch=true and center.source!=keys",
    )
    source: Literal["container", "table"] = option(
        "container",
        "where they come from; container: the most recent centers; table: centers drawn at random from the table of all identities, new in each step",
        acts="head.name=attfc and center.table!=none",
    )
