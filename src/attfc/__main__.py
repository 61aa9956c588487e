"""``python -m attfc``: the same as the console script."""

from attfc.cli import main

main()
