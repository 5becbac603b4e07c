"""Run the command line with ``python -m maury``."""

from maury.cli import main

if __name__ == "__main__":
    main()
