from .explorer.server import explore as explore
from .page.assemble import write_report as write_report
from .publish.converters import to_specutils as to_specutils
from .publish.converters import to_table as to_table
from .publish.converters import to_xarray as to_xarray
