"""losses of attfc."""
