"""Chemical cartography: distances, places, orbits, gradients, and two sequences of [alpha/M]."""
