"""``python -m attfc`` and the console script: nothing is imported before Ctrl-C is taken care of."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; Ctrl-C leaves with status 130, also while the program is being loaded."""
    try:
        from attfc.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
