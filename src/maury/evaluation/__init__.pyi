from .card import ModelCard as ModelCard
from .joint_validation import validate_joint as validate_joint
from .validation import validate as validate
