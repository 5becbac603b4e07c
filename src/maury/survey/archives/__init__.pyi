from .cuts import Cut as Cut
from .cuts import Selection as Selection
from .cuts import apply_cuts as apply_cuts
from .recipe import SurveyRecipe as SurveyRecipe
from .recipe import load as load
from .recipe import names as names
