"""A service over HTTP: embed, verify and search photos, and a page to try it; `attfc serve` starts it."""
