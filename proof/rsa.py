"""Compare `alexnet similarity` with rsatoolbox: dissimilarities and their rank correlations; run by `make prove-rsa`."""

import numpy as np
import rsatoolbox

from alexnet.rsa.measures import Kind, cosines, dissimilarities, pairs, ranked

MARGIN = 1e-10
KINDS: tuple[Kind, ...] = ("correlation", "euclidean")


def main() -> None:
    """Compare on random features of 60 images, and print the largest differences."""
    random = np.random.default_rng(0)
    first = random.normal(size=(60, 200))
    features = [first, first[:, :50] + random.normal(size=(60, 50))]
    datasets = [rsatoolbox.data.Dataset(values) for values in features]
    for kind in KINDS:
        theirs = [rsatoolbox.rdm.calc_rdm(dataset, method=kind) for dataset in datasets]
        ours = [dissimilarities(values, kind) for values in features]
        # theirs is the mean squared difference, for `euclidean`
        same = [rdm if kind == "correlation" else rdm**2 / values.shape[1] for rdm, values in zip(ours, features, strict=True)]
        gaps = [np.abs(their.get_matrices()[0] - our).max() for their, our in zip(theirs, same, strict=True)]
        theirs_alike = rsatoolbox.rdm.compare(*theirs, method="spearman")[0, 0]
        gaps.append(abs(theirs_alike - cosines([ranked(pairs(rdm)) for rdm in ours])[0, 1]))
        print(f"{kind}: dissimilarities differ by {max(gaps[:2]):.1e}, their rank correlation by {gaps[2]:.1e}")
        assert max(gaps) < MARGIN


if __name__ == "__main__":
    main()
