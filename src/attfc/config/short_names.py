"""What may be typed in place of a dotted name, on the command line and in `attfc.train(...)`."""

__all__ = ["SHORT_NAMES", "short_name"]

SHORT_NAMES = {
    "epochs": "schedule.epochs",
    "max_steps": "schedule.max_steps",
    "lr": "optimizer.learning_rate",
    "backbone": "backbone.name",
    "teacher": "teacher.model",
}


def short_name(key: str) -> str:
    """Return the short name of an option, or its own where it has none; a section of kinds stands for its kind."""
    return next((short for short, name in SHORT_NAMES.items() if name == key), key.removesuffix(".kind"))
