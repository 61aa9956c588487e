"""backbones of attfc."""
