from .distillation import distil as distil
from .joint import add_survey as add_survey
from .joint import train_joint as train_joint
from .runs import train as train
from .theory_only import train_on_theory as train_on_theory
