from .checking import SurveyCheck as SurveyCheck
from .checking import check_toml as check_toml
from .file_survey import FileSurvey as FileSurvey
from .general import ingest_toml as ingest_toml
from .general import open_toml as open_toml
from .released import ingest_released as ingest_released
