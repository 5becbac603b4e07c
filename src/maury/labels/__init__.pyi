from .columns import BANDS as BANDS
from .columns import Column as Column
from .definitions import LABELS as LABELS
from .definitions import Label as Label
from .flags import Flag as Flag
