"""Load weights in the layout of torchvision's AlexNet, the variant `owt`."""

import io
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

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
# AlexNet_Weights.IMAGENET1K_V1.transforms
IMAGES = {
    **{"cache_size": 256, "fit": "torchvision", "filter": "bilinear", "crop": 224, "value_range": 1},
    **{"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "input": 224},
}

NAMES = {f"{theirs}.{part}": f"{ours}.{part}" for theirs, ours in LAYERS.items() for part in ("weight", "bias")}
# Objects that checkpoints hold beside the weights: each is replaced by one that holds nothing.
REPLACED = (
    *(
        "argparse.Namespace",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath",
    ),
    *("numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
)
DEPTH = 3  # of dictionaries in a checkpoint: {"model": {"state_dict": {…}}}


class _Nothing:
    """What becomes of an object of `REPLACED`."""

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *args: Any, **keywords: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_torchvision(content: bytes, origin: Path) -> dict[str, Tensor]:
    """Return the tensors of a file in torchvision's layout, `.pth` or safetensors, under our names.

    They may be wrapped, as in `{"state_dict": {"module.features.0.weight": …}}`. Nothing in a `.pth` is executed.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # a damaged pickle may look like one of another version
            stored = safetensors.torch.load(content) if is_safetensors(content) else _unpickle(content)
    except Exception as error:  # torch raises a dozen kinds, and suggests executing what it refuses
        advice = "save the weights alone where it was made, torch.save(model.state_dict(), 'weights.pth')"
        reason = "is damaged, or not a file of weights alone (nothing in it was executed)"
        raise WeightsError(f"{origin} {reason}: {advice}") from error
    networks = [tensors for tensors in _networks(stored, DEPTH) if set(tensors) == set(NAMES)]
    if len(networks) > 1:
        raise WeightsError(f"{origin} holds {len(networks)} networks: save one of them alone")
    if not networks or not all(map(_is_plain, networks[0].values())):
        raise WeightsError(f"{origin} is not in the layout of torchvision's AlexNet (features.0.weight to classifier.6.bias)")
    return {NAMES[name]: tensor.detach() for name, tensor in networks[0].items()}


def is_safetensors(content: bytes) -> bool:
    """Return whether a file of this content, or one that begins so, is a safetensors file."""
    return content[8:9] == b"{" and int.from_bytes(content[:8], "little") < 100_000_000  # the format's limit for its header


def _unpickle(content: bytes) -> Any:
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("torch does not compress: this may unpack to any size")
    if b"bytearray" in content:
        raise ValueError("of what torch allows to be called, this alone makes memory of any size, and no weights need it")
    with torch.serialization.safe_globals([(_Nothing, name) for name in REPLACED]):
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _networks(stored: Any, depth: int) -> Iterator[dict[str, Any]]:
    """Yield the dictionaries of tensors in a checkpoint, without what wrappers add to their names: `module.`, `model.`."""
    if not isinstance(stored, Mapping) or not depth:
        return
    names = {name: ".".join(part for part in name.split(".") if part != "module") for name in stored if isinstance(name, str)}
    start = next((name.removesuffix("features.0.weight") for name in names.values() if name.endswith("features.0.weight")), "")
    if start or set(names.values()) & set(NAMES):
        yield {names[name].removeprefix(start): tensor for name, tensor in stored.items() if isinstance(tensor, Tensor)}
    for value in stored.values():
        yield from _networks(value, depth - 1)


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is of floats that are all there: its shape may be larger than what is stored."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.is_floating_point():
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def copy_weights(tensors: dict[str, Tensor], network: AlexNet, origin: str, *, head: bool = False) -> None:
    """Copy weights and statistics, under our names, into all layers of `network`; into the head only if `head` is set.

    All are copied or none. A network on the device `meta` takes memory only then, for which it needs all its weights.
    """

    def chosen(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix("features."): t for name, t in state.items() if head or not name.startswith("head.")}

    theirs, ours, variant = chosen(tensors), chosen(network.state_dict()), f"the variant {network.row.name!r}"
    if extra := sorted(set(theirs) - set(ours)):
        raise WeightsError(f"{origin} has {extra[0]}, which {variant} does not have")
    for name, tensor in ours.items():
        if name not in theirs:
            raise WeightsError(f"{origin} has no {name}, which {variant} needs")
        if theirs[name].shape != tensor.shape:
            shapes = " and ".join("x".join(map(str, t.shape)) or "one" for t in (theirs[name], tensor))
            raise WeightsError(f"{origin} does not fit {variant}: {name} is {shapes} there and here")
    if network.head.weight.is_meta:
        network.allocate(torch.get_default_device())
        ours = chosen(network.state_dict())
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(theirs[name])
