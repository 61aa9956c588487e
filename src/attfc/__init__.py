"""attfc."""
