from .files import publish as publish
from .files import refuse_existing as refuse_existing
from .files import writing as writing
from .source_table import SourceTable as SourceTable
from .tables import open_table as open_table
