"""The peer of `doubts.py`, in `.venv-cleanlab`: prints what cleanlab finds, as JSON.

    python -m benchmarks.cleanlab_peer FILE.npz    with the arrays `targets` (N) and `probabilities` (N x classes)

Prints `{"version", "found": positions, most probably wrong first, "ranking": "quality" of each label}`.
"""

from __future__ import annotations

import json
import sys

import cleanlab
import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores


def main() -> None:
    """Read the file named on the command line, and print the result."""
    with np.load(sys.argv[1], allow_pickle=False) as archive:
        targets, probabilities = archive["targets"], archive["probabilities"].astype(float)
    probabilities /= probabilities.sum(1, keepdims=True)
    found = find_label_issues(targets, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    quality = get_label_quality_scores(targets, probabilities)
    print(json.dumps({"version": cleanlab.__version__, "found": found.tolist(), "quality": quality.tolist()}))


if __name__ == "__main__":
    main()
