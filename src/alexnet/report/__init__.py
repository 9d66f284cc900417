"""The report of a run, comparisons of runs, and figures of datasets."""
