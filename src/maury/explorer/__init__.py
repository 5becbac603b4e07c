"""A local web page that shows a catalogue: linked panels, filters, and every star's spectrum."""

from maury.explorer.server import Explorer, explore

__all__ = ["Explorer", "explore"]
