"""heads of attfc."""
