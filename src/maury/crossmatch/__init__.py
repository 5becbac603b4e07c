"""Which row of one catalogue is which of another: by identifier, or by position and motion.

Nothing is chosen silently: every left row has the number of its candidates and the reasons why it
is matched, doubtful or unmatched, and what happens to doubtful rows is a stated policy.
"""

from maury.crossmatch.matches import DOUBTFUL, Match, MatchFlag, MatchReport, fill
from maury.crossmatch.matching import Policy, match_identifiers, match_positions
from maury.crossmatch.positions import Positions

__all__ = [
    "DOUBTFUL",
    "Match",
    "MatchFlag",
    "MatchReport",
    "Policy",
    "Positions",
    "fill",
    "match_identifiers",
    "match_positions",
]
