"""evaluation of attfc."""
