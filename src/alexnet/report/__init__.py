"""The page about a run, comparisons, and pictures of datasets."""
