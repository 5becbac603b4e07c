from .describing import Description as Description
from .describing import describe_folder as describe_folder
from .describing import init_survey as init_survey
