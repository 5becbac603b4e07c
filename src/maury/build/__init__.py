"""From spectra and public catalogues to a labelled survey store, with every cut on record.

`build_survey` follows a TOML file (`maury.build.recipe`): it opens the spectra, applies the cuts
of the catalogues, matches them, puts their labels on one scale, and writes the store. What each
step let through, and why, is the flow table.
"""

from maury.build.building import Built, build_survey
from maury.build.flow import Flow, FlowStep
from maury.build.recipe import BuildRecipe, load_recipe

__all__ = ["BuildRecipe", "Built", "Flow", "FlowStep", "build_survey", "load_recipe"]
