from .batch import Batch as Batch
from .preparation import Preparation as Preparation
from .spectra import Spectra as Spectra
