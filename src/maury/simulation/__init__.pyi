from .emulator import Emulator as Emulator
from .population import Population as Population
from .surveys import simulate_survey as simulate_survey
from .training_stars import TrainingStarSimulator as TrainingStarSimulator
from .xp_coefficients import add_simulated_xp as add_simulated_xp
