from .building import Built as Built
from .building import build_survey as build_survey
from .flow import Flow as Flow
from .flow import FlowStep as FlowStep
from .recipe import BuildRecipe as BuildRecipe
from .recipe import load_recipe as load_recipe
