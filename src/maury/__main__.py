"""Run the command line with ``python -m maury``."""

from maury.cli.app import main

if __name__ == "__main__":
    main()
