"""The options of a run that learns from another model."""

from typing import Annotated, Any, Literal

from pydantic import Field

from attfc.config.option import Section, option

__all__ = ["TeacherConfig"]


class TeacherConfig(Section):
    """A trained model to learn from: its embeddings of the training images, without augmentation, are targets."""

    model: str | None = option(
        None,
        "a run, a model folder, .safetensors, .pt, .pth or .onnx; its embeddings of the training images are computed once and kept on disk",
        null="no teacher",
    )
    model_is: dict[str, Any] = option(
        dict,
        "facts that the teacher's file does not state, such as {network: r50, colour_order: BGR}; as --model-is of attfc evaluate",
        acts="teacher.model!=null",
    )
    loss: Literal["cosine"] | None = option(
        "cosine",
        "loss added to the head's; cosine: 1 - cosine of an embedding and the teacher's of the same image, after a linear map if sizes differ",
        null="none",
        acts="teacher.model!=null",
    )
    weight: Annotated[float, Field(gt=0)] = option(
        32.0, "factor of that loss", acts="teacher.model!=null and teacher.loss=cosine"
    )
    centers: Literal["fixed"] | None = option(
        None,
        "fixed: class centers are the teacher's mean embedding per identity and do not move, so new embeddings can be compared with the teacher's. "
        "Needs head.kind=attfc with center_table and own_embedding",
        null="the run makes its own centers",
        acts="teacher.model!=null",
    )
    cache: str | None = option(
        None,
        "folder for the teacher's embeddings, 8 bytes per number and image; several hosts need a shared one",
        null="the user's cache folder",
        acts="teacher.model!=null",
    )
