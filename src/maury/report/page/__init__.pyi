from .plates import Omitted as Omitted
from .plates import Plate as Plate
from .plates import Section as Section
from .report import Report as Report
from .report import sections as sections
from .report import write_report as write_report
