"""Fast implementations of layers, exact up to rounding."""
