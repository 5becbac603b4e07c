"""Public files of a survey, downloaded as its recipe names them.

Sizes are known before, downloads resume, and what arrives is compared with what was promised.
"""

from maury.fetch.download import Downloader
from maury.fetch.manifest import MANIFEST
from maury.fetch.plans import Plan, Planned, fetch, plan, readable
from maury.fetch.web import Manners, Web

__all__ = [
    "MANIFEST",
    "Downloader",
    "Manners",
    "Plan",
    "Planned",
    "Web",
    "fetch",
    "plan",
    "readable",
]
