"""data of attfc."""
