"""Models in and out: open any model for evaluation, export a trained one as ONNX or as a folder for the Hugging Face hub."""

from attfc.export.colours import Colours
from attfc.export.export import Exported, export_hub_folder, export_onnx
from attfc.export.face_model import FaceModel, load
from attfc.export.hub_folder import from_pretrained
from attfc.export.model_inputs import ModelFacts, open_model

__all__ = [
    "Colours",
    "Exported",
    "FaceModel",
    "ModelFacts",
    "export_hub_folder",
    "export_onnx",
    "from_pretrained",
    "load",
    "open_model",
]
