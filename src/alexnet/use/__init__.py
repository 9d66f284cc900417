"""Uses a run."""
