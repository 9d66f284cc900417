"""Load weights in torchvision's AlexNet layout into the variant `owt`."""

import io
import warnings
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from alexnet.errors import WeightsError
from alexnet.network.alexnet import AlexNet

# torchvision's names (models/alexnet.py) and ours.
LAYERS = {
    "features.0": "features.conv1",
    "features.3": "features.conv2",
    "features.6": "features.conv3",
    "features.8": "features.conv4",
    "features.10": "features.conv5",
    "classifier.1": "features.fc6",
    "classifier.4": "features.fc7",
    "classifier.6": "head",
}


def read_torchvision(content: bytes, origin: Path) -> dict[str, Tensor]:
    """Return the tensors of a file in torchvision's layout, `.pth` or safetensors, under our names.

    Only tensors are read, and nothing in a `.pth` is executed.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # a damaged pickle may look like one of another version
            if origin.suffix == ".safetensors":
                tensors = safetensors.torch.load(content)
            else:
                tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds, and suggests executing what it refuses
        raise WeightsError(f"{origin} is damaged, or not a file of weights alone (nothing in it was executed)") from error
    names = {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in LAYERS.items() for kind in ("weight", "bias")}
    if not isinstance(tensors, dict) or set(tensors) != set(names) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise WeightsError(f"{origin} is not in the layout of torchvision's AlexNet (features.0.weight to classifier.6.bias)")
    return {names[name]: tensor for name, tensor in tensors.items()}


def copy_weights(tensors: dict[str, Tensor], network: AlexNet, origin: str) -> None:
    """Copy weights and statistics, under our names, into all layers of `network` but the head; all of them or none."""
    theirs = {name.removeprefix("features."): tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    ours, variant = network.features.state_dict(), f"the variant {network.row.name!r}"
    if extra := sorted(set(theirs) - set(ours)):
        raise WeightsError(f"{origin} has {extra[0]}, which {variant} does not have")
    for name, tensor in ours.items():
        if name not in theirs:
            raise WeightsError(f"{origin} has no {name}, which {variant} needs")
        if theirs[name].shape != tensor.shape:
            shapes = " and ".join("x".join(map(str, t.shape)) or "one" for t in (theirs[name], tensor))
            raise WeightsError(f"{origin} does not fit {variant}: {name} is {shapes} there and here")
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(theirs[name])
