from .distillation import distil as distil
from .runs import train as train
from .theory_only import train_on_theory as train_on_theory
