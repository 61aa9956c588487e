"""training of attfc."""
