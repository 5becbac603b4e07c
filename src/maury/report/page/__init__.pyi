from .assemble import Report as Report
from .assemble import sections as sections
from .assemble import write_report as write_report
from .plates import Omitted as Omitted
from .plates import Plate as Plate
from .plates import Section as Section
