"""The version of `maury`, said once."""

__version__ = "0.1.0"
