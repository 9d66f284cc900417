"""A run behind HTTP: what `alexnet serve` starts."""
