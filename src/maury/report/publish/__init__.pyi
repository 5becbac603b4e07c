from .citing import cite as cite
from .convert import convert as convert
from .converters import to_specutils as to_specutils
from .converters import to_table as to_table
from .converters import to_xarray as to_xarray
