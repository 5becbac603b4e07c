from .catalogue import Catalogue as Catalogue
from .joint_catalogue import predict_joint as predict_joint
from .predictor import Predictor as Predictor
from .streaming import predict as predict
