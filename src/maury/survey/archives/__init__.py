"""Public surveys as declarative recipes: files, columns, units, cuts, conventions, citation.

A recipe is a TOML file; `load` reads one that ships with the package or one of a user, `names`
lists the former. `maury.survey.archives.cuts` applies the cuts.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
