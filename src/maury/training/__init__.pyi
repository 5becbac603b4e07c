from .distillation import distil as distil
from .runs import train as train
