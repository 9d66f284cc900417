"""Fast forms of layers, exact to rounding."""
