"""Which row of one catalogue is which of another: by identifier, or by position and motion.

Nothing is chosen silently: every left row has the number of its candidates and the reasons why it
is matched, doubtful or unmatched, and what happens to doubtful rows is a stated policy.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
