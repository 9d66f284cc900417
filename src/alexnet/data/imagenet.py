"""ImageNet's 1,000 classes (ILSVRC 2012), in the order that published networks number them: by WordNet ID.

The labels are torchvision's: the first word of each class, made unique where two classes share it.
"""

from collections.abc import Collection
from functools import cache
from importlib.resources import files

NAME = "imagenet"  # as a dataset


def as_named(labels: tuple[str, ...], known: Collection[str]) -> tuple[str, ...]:
    """Return labels with WordNet IDs for words if those that are `known` are IDs, as in runs of earlier versions."""
    if not known or not set(known) <= imagenet_classes().keys():
        return labels
    ids = {word: wnid for wnid, word in imagenet_classes().items()}
    return tuple(ids.get(label, label) for label in labels)


@cache
def imagenet_classes() -> dict[str, str]:
    """Return the label of each class by its WordNet ID, such as `n01440764`: `tench`; the IDs are sorted."""
    lines = (files("alexnet.data") / "imagenet.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)
