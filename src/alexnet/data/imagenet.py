"""ImageNet's 1,000 classes (ILSVRC 2012), in the order that published networks number them: by WordNet ID.

The labels are torchvision's: the first word of each class, made unique where two classes share it.
"""

from functools import cache
from importlib.resources import files

NAME = "imagenet"  # as a dataset


@cache
def imagenet_classes() -> dict[str, str]:
    """Return the label of each class by its WordNet ID, such as `n01440764`: `tench`; the IDs are sorted."""
    lines = (files("alexnet.data") / "imagenet.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)
