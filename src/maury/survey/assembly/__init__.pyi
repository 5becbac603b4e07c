from .build_file import BuildRecipe as BuildRecipe
from .build_file import load_recipe as load_recipe
from .building import Built as Built
from .building import build_survey as build_survey
from .flow import Flow as Flow
from .flow import FlowStep as FlowStep
