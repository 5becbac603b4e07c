from .card import ModelCard as ModelCard
from .validation import validate as validate
