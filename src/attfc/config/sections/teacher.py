"""The options of a run that learns from another model."""

from typing import Annotated, Any, Literal

from pydantic import Field

from attfc.config.option import Section, option

__all__ = ["TeacherConfig"]


class TeacherConfig(Section):
    """A trained model to learn from, by its embeddings of the training images, upright and not augmented."""

    model: str | None = option(
        None,
        "a run, a model folder, .safetensors, .pt, .pth or .onnx; its embeddings of the training images are computed once and kept on disk",
        null="no teacher",
    )
    model_is: dict[str, Any] = option(
        dict,
        "what the teacher's file does not say, such as {network: r50, colour_order: BGR}; as --model-is of attfc evaluate",
        acts="teacher.model!=null",
    )
    loss: Literal["cosine"] | None = option(
        "cosine",
        "added to the head's loss; cosine: 1 - cosine of an embedding with the teacher's of the same image, through a linear map where sizes differ",
        null="nothing",
        acts="teacher.model!=null",
    )
    weight: Annotated[float, Field(gt=0)] = option(
        32.0, "factor of that loss", acts="teacher.model!=null and teacher.loss=cosine"
    )
    centers: Literal["fixed"] | None = option(
        None,
        "fixed: the table of centers holds the teacher's, the mean of its embeddings per identity, and they do not move: new embeddings can then be "
        "compared with the teacher's. Takes head.kind=attfc with center_table and own_embedding",
        null="the run makes its own",
        acts="teacher.model!=null",
    )
    cache: str | None = option(
        None,
        "folder of the teacher's embeddings, 8 bytes per number and image; several hosts need one that all of them see",
        null="the user's cache folder",
        acts="teacher.model!=null",
    )
