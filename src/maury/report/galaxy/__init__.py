"""Chemical cartography: places of stars with errors, gradients, two alpha sequences."""
