from .store import Survey as Survey
from .store import SurveyWriter as SurveyWriter
