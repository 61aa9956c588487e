"""Where a model's weights come from, in words: its training data, and the weights that it started from, with their licences.

config.json has them as ``training_data``: {"root", "licence", "start_weights": {"source", "root", "licence", "start_weights": ...}}. A model
that started from another carries that one's terms too, and so does every model that starts from it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["licences", "start_weights_text", "training_data_of"]

DEEPEST = 16  # of models that started from models; config.json may come from a stranger


def training_data_of(training_data: Any) -> tuple[str, str]:
    """Return root and licence of the data that a model itself was trained on."""
    data = training_data if isinstance(training_data, Mapping) else {"root": training_data}
    return str(data.get("root", "unknown")), str(data.get("licence", "unknown"))


def licences(training_data: Any) -> str:
    """Return the licence of the data, and behind it those of the weights that the model started from, and that of its teacher's data.

    >>> licences({"root": "ours", "licence": "MIT", "start_weights": {"source": "r50.pth", "licence": "research only"}})
    'MIT; start weights: research only'
    """
    own = training_data_of(training_data)[1]
    others = [licence for _, _, licence in _earlier(training_data)]
    started = f"; start weights: {', '.join(dict.fromkeys(others))}" if others else ""
    teacher = training_data.get("teacher") if isinstance(training_data, Mapping) else None
    return own + started + (f"; teacher: {training_data_of(teacher)[1]}" if teacher else "")


def start_weights_text(training_data: Any) -> str | None:
    """Say what a model started from, the newest first; None: it was trained from scratch, or nobody says.

    >>> start_weights_text({"root": "ours", "start_weights": {"source": "r50.pth", "root": "MS1MV3", "licence": "research only"}})
    'r50.pth (trained on MS1MV3, licence: research only)'
    """
    steps = [f"{source} (trained on {root}, licence: {licence})" for source, root, licence in _earlier(training_data)]
    return "; which started from ".join(steps) or None


def _earlier(training_data: Any) -> Iterator[tuple[str, str, str]]:
    """Yield source, data and licence of each model that one started from."""
    for _ in range(DEEPEST):
        started = training_data.get("start_weights") if isinstance(training_data, Mapping) else None
        if not started:
            return
        if not isinstance(started, Mapping):  # of an ONNX file: a text
            started = {"source": started}
        yield str(started.get("source", "unknown")), *training_data_of(started)
        training_data = started
