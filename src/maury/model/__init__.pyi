from .directory import Model as Model
from .joint_model import JointModel as JointModel
from .keras import import_keras as import_keras
