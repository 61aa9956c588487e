"""What a run's report says about the people of its evaluation: whether they were trained on, and how many they are."""

from collections.abc import Mapping
from typing import Any

from attfc.evaluation.bootstrap import FigurePath, figure_at
from attfc.evaluation.people import FEW_PEOPLE, rests_on

__all__ = ["checked_line", "notes_of_result", "people_behind", "people_title", "people_warning", "tar_columns"]


def _unseen(figures: Mapping[str, Any], name: str) -> str:
    """What was found out about the people of an evaluation, an empty text where nothing was."""
    found = figure_at(figures, ("unseen", name))
    return found if isinstance(found, str) else ""


def people_behind(figures: Mapping[str, Any]) -> str:
    """Return "rests on 2 people" where they are few, else an empty text."""
    people = figures.get("people")
    return rests_on(people) if isinstance(people, int) and people < FEW_PEOPLE else ""


def people_title(figures: Mapping[str, Any]) -> str:
    """Return the heading of the verification: whom it is of, as far as that was checked."""
    return f"Verification {_unseen(figures, 'heading')}".strip()


def people_warning(figures: Mapping[str, Any]) -> str:
    """Return what must stand before any metric: that people of the evaluation were trained on."""
    return _unseen(figures, "warning")


def notes_of_result(figures: Mapping[str, Any], holder: Mapping[str, Any]) -> list[str]:
    """Return the notes of a part of a result's figures, each once, the warning about its people first."""
    told = [
        [people_warning(figures), _unseen(figures, "alike")],
        holder.get("notes"),
        figures.get("notes"),
        holder.get("interval_notes"),
    ]
    notes = [str(note) for part in told if isinstance(part, list) for note in part if note]
    return list(dict.fromkeys(notes))


def checked_line(figures: Mapping[str, Any]) -> str:
    """Return how it was checked whether the people were trained on."""
    found = _unseen(figures, "checked")
    return f"Training and evaluation data, {found}." if found else ""


def tar_columns(figures: Mapping[str, Any]) -> dict[str, FigurePath]:
    """Return the columns of the table of TAR at FAR: the list of pairs, all pairs, and all pairs with each person weighing alike."""
    columns: dict[str, FigurePath] = {"pairs": ("tar_at_far",)}
    if isinstance(figures.get("all_pairs"), Mapping):
        columns["all pairs"] = ("all_pairs", "tar_at_far")
    alike = ("all_pairs", "person_balanced_tar_at_far")
    if isinstance(figure_at(figures, alike), Mapping):
        columns["each person alike"] = alike
    return columns
