from .emulator import Emulator as Emulator
from .population import Population as Population
from .sky import Sky as Sky
from .surveys import simulate_survey as simulate_survey
