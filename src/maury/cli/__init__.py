"""The command line: each command is one call of the library, with a progress bar and a summary."""
