"""Makes a run."""
