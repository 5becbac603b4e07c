"""Public surveys as declarative recipes: files, columns, units, cuts, conventions, citation.

A recipe is a TOML file; `load` reads one that ships with the package or one of a user, `names`
lists the former. `maury.surveys.cuts` applies the cuts.
"""

from maury.surveys.cuts import Cut, Selection, apply_cuts
from maury.surveys.recipe import SurveyRecipe, load, names

__all__ = ["Cut", "Selection", "SurveyRecipe", "apply_cuts", "load", "names"]
