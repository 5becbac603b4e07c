from .directory import Model as Model
from .keras import import_keras as import_keras
