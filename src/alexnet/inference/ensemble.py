"""An ensemble: networks that answer together, by the mean of their probabilities (paper, section 6)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from alexnet.inference.evaluate import Evaluation
from alexnet.inference.metrics import log_probabilities


def average(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Return the evaluation of networks together, whose logits are the logarithms of their mean probabilities.

    All evaluations are of the same images, with the same labels. Probabilities are averaged before calibration.
    """
    rows = np.stack([log_probabilities(evaluation.logits) for evaluation in evaluations])
    mean = torch.from_numpy(rows).logsumexp(0) - np.log(len(rows))
    skipped = list(dict.fromkeys(skipped for evaluation in evaluations for skipped in evaluation.skipped))
    return replace(evaluations[0], logits=mean.float().numpy(), temperature=1.0, skipped=skipped, known=None)
