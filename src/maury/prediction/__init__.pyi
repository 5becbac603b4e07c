from .catalogue import Catalogue as Catalogue
from .predictor import Predictor as Predictor
from .streaming import predict as predict
