"""The detector to use: the default, or a user's ONNX file."""

from pathlib import Path

from attfc.photos.detector import Detector
from attfc.photos.mtcnn import Mtcnn
from attfc.photos.single_shot import SingleShot

__all__ = ["open_detector"]


def open_detector(path: Path | None = None) -> Detector:
    """Return a detector that computes on one processor core.

    Args:
        path: an ONNX file of SCRFD, RetinaFace, YuNet or CenterFace; None: MTCNN, which the extra `align` installs.

    Raises:
        UserError: the extra is not installed; the file is none of these detectors.
    """
    return Mtcnn.installed() if path is None else SingleShot(path)
