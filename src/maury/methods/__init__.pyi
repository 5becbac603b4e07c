from .protocols import Method as Method
from .protocols import MethodSettings as MethodSettings
