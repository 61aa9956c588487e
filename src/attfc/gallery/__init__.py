"""Whose face is it: templates of people, kept in a folder, searched exactly, erased without traces."""

from attfc.gallery.gallery import Added, Gallery, Match, Removed

__all__ = ["Added", "Gallery", "Match", "Removed"]
