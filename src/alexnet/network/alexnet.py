"""The network: build any variant as a `torch.nn.Module`."""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from alexnet.errors import VariantError
from alexnet.network import layers as custom
from alexnet.network import variants
from alexnet.network.device import in_its_format
from alexnet.network.fast import fuse
from alexnet.network.lrn import LocalMapNorm, LocalResponseNorm

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}  # not in place: explanations need the input
DROPOUTS: dict[str, type[nn.Module]] = {"training": custom.Dropout, "testing": custom.Dropout2012}
TORCHVISION_ORDER = {  # layers of torchvision's AlexNet (models/alexnet.py) under our names
    "features": "conv1 relu1 pool1 conv2 relu2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5",
    "classifier": "dropout5 fc6 relu6 dropout6 fc7 relu7 fc8",
}
# Our names by torchvision's.
TORCHVISION = {f"{part}.{i}": name for part, names in TORCHVISION_ORDER.items() for i, name in enumerate(names.split())}


class AlexNet(nn.Module):
    """AlexNet in any of its variants.

    Args:
        row: name of a variant, or a `Variant` of your own.
        classes: number of outputs; None for the variant's.
        width: factor on the number of channels and units; 1/16 gives a network of a few hundred thousand weights.
        overrides: fields of the variant to change, as in a recipe: `activation="tanh"`, `norm="none"`, `dropout=0.2`,
            `towers=1`.

    Attributes:
        row: the `Variant` of the network.
        smallest: minimum size of images, in pixels per side.
        features: all layers up to the last hidden one, by name (`conv1`, `relu1`, `norm1`, `pool1` ... `fc7`, `relu7`,
            `dropout7`), as a `torch.nn.Sequential`.
        head: the last dense layer, `fc8`.

    Raises:
        VariantError: no such variant, or an invalid field.
    """

    def __init__(
        self, row: str | variants.Variant = "cifar10", classes: int | None = None, *, width: float = 1.0, **overrides: Any
    ) -> None:
        super().__init__()
        self.row = variants.variant(row, overrides)
        if classes is not None and classes < 1:
            raise VariantError(f"classes is {classes}, but should be 1 or more")
        if not width > 0:
            raise VariantError(f"width is {width:g}, but should be greater than 0")
        self.smallest = _smallest_input(self.row)
        self._plan, self._partial_plan = fuse.Plan(), fuse.Plan()
        with torch.device("meta"):  # skip PyTorch's own initialization
            self.features, units = _features(self.row, width)
            self.head = nn.Linear(units, self.row.classes if classes is None else classes)
        if (device := torch.get_default_device()).type != "meta":
            self.allocate(device)
            initialize(self)

    def allocate(self, device: torch.device) -> None:
        """Allocate memory for all parameters and buffers of a network on the meta device; their values are undefined.

        Args:
            device: where the memory is.
        """
        # Not `to_empty`: for tensors on the meta device, it imports parts of PyTorch that take most of a second.
        self._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))  # type: ignore[no-untyped-call]

    def forward(self, images: Tensor, upscale: int = 1) -> Tensor:
        """Return the logits of images, N x classes float32, or bfloat16 under autocast.

        Args:
            images: N 3 H W float32, normalised, of size `smallest` or larger.
            upscale: repeat every pixel upscale x upscale times first.

        Raises:
            VariantError: images are too small for the pooling layers, or have another shape.
        """
        return self.activations(images, (), upscale)[0]

    def activations(self, images: Tensor, names: Collection[str], upscale: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits and the outputs of some layers, with their gradient graph.

        Args:
            images: as for `AlexNet.forward`.
            names: layers to return, from `layer_names` or `torchvision_names`.
            upscale: as for `AlexNet.forward`.

        Returns:
            Logits, N x classes, and by the names given maps, N C H W, or vectors, N units: float32, or bfloat16 under autocast.

        Raises:
            VariantError: images are too small for the pooling layers or have another shape, or there is no such layer.
        """
        self._check(images, upscale)
        ours = {name: self.layer_name(name) for name in names}
        kept: dict[str, Tensor] = {}
        x = in_its_format(images)
        for name, layer in self._plan.steps(self.layers, frozenset(ours.values()), upscale):
            x = layer(x)
            if name in ours.values():
                kept[name] = x
        return x, {name: kept[layer] for name, layer in ours.items()}

    def run_layers(self, x: Tensor, after: str | None, until: str, upscale: int = 1) -> Tensor:
        """Return the output of layer `until` for images, or with `after` for the output `x` of that earlier layer.

        `x` is as for `AlexNet.forward`, or N C H W or N units, as `activations` returns them. `upscale` is for images alone.
        """
        x, layers, names = in_its_format(x), self.layers, self.layer_names
        first = 0 if after is None else names.index(self.layer_name(after)) + 1
        part = names[first : names.index(self.layer_name(until)) + 1]
        for _, layer in self._partial_plan.steps({name: layers[name] for name in part}, (), upscale):
            x = layer(x)
        return x

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of all layers, in order; `fc8` is the last."""
        return tuple(self.layers)

    @property
    def layers(self) -> dict[str, nn.Module]:
        """All layers by name, in order; the last is `fc8`, the head."""
        return {**dict(self.features.named_children()), "fc8": self.head}

    @property
    def torchvision_names(self) -> dict[str, str]:
        """Names of the layers by torchvision's names: `{"features.0": "conv1", ...}`.

        Empty unless the layers are those of torchvision's AlexNet, in its order, as in the variant `owt`: elsewhere
        `features.3` would be another layer than there.
        """
        ours = [name for name in self.layers if name != "flatten"]  # a function there
        same = [name.replace(self.row.activation, "relu") for name in ours] == list(TORCHVISION.values())
        return dict(zip(TORCHVISION, ours, strict=True)) if same else {}

    def layer_name(self, name: str) -> str:
        """Return the name in `layer_names` of a layer.

        Args:
            name: that name itself, or torchvision's, from `torchvision_names`.

        Raises:
            VariantError: there is no such layer.
        """
        theirs = self.torchvision_names
        if name in self.layers or name in theirs:
            return theirs.get(name, name)
        problem = f"no layer {name!r} in {self.row.name!r}: it has {', '.join(self.layer_names)}"
        hint = "; torchvision's names are for torchvision's order of layers, as in 'owt'" if name in TORCHVISION else ""
        raise VariantError(problem + hint)

    def _check(self, images: Tensor, upscale: int) -> None:
        if images.ndim != 4 or images.shape[1] != 3:
            raise VariantError(f"images must be N x 3 x H x W, not {' x '.join(map(str, images.shape))}")
        height, width = images.shape[2] * upscale, images.shape[3] * upscale
        if min(height, width) < self.smallest:
            needed = f"its pooling layers need at least {self.smallest}x{self.smallest} (images.input in the recipe)"
            raise VariantError(f"images of {height}x{width} pixels are too small for {self.row.name!r}: {needed}")


def _features(row: variants.Variant, width: float) -> tuple[nn.Sequential, int]:
    """Build all layers but the head; return them and the number of units of the last."""
    layers = nn.Sequential()
    channels, number, size = 3, 0, row.input_size  # `channels` is the number of units after `Flatten`
    for record in row.layers:
        match record:
            case variants.Conv():
                number, out = number + 1, row.scaled(record.channels, width)
                groups = row.towers if record.grouped else 1
                if after := record.padding_after:
                    layers.add_module(f"pad{number}", nn.ZeroPad2d((0, after, 0, after)))
                window = record.kernel, record.stride, record.padding
                conv = nn.Conv2d(channels, out, *window, groups=groups, bias=record.bias is not None)
                layers.add_module(f"conv{number}", conv)
                channels, size = out, _output_size(size + after, *window)
            case variants.Dense():
                number, out = number + 1, row.scaled(record.units, width)
                layers.add_module(f"fc{number}", nn.Linear(channels, out))
                channels = out
            case variants.Act():
                layers.add_module(f"{row.activation}{number}", ACTIVATIONS[row.activation]())
            case variants.Norm() if isinstance(row.norm, variants.BatchNorm):
                layers.add_module(f"norm{number}", custom.BatchNorm(channels, row.norm.epsilon, row.norm.momentum))
            case variants.Norm() if isinstance(row.norm, variants.LocalNorm):
                norm, towers = row.norm, 1 if row.norm.across else row.towers
                layers.add_module(f"norm{number}", LocalResponseNorm(norm.size, norm.alpha, norm.beta, norm.k, towers))
            case variants.Norm():
                pass  # the variant has none
            case variants.MapNorm():
                layers.add_module(f"mapnorm{number}", LocalMapNorm(record.size, record.alpha, record.beta, record.k))
            case variants.Pool():
                layers.add_module(f"pool{number}", nn.MaxPool2d(*row.pool, ceil_mode=row.ceil_mode))
                size = _output_size(size, *row.pool, ceil_mode=row.ceil_mode)
            case variants.Flatten():
                layers.add_module("flatten", custom.FlattenMaps(size, row.flatten))
                channels *= size * size
            case variants.Drop():
                layers.add_module(f"dropout{number}", DROPOUTS[row.dropout_scales](row.dropout))
            case _:
                raise AssertionError(f"no module is known for {record}")
    return layers, channels


def _output_size(size: int, kernel: int, stride: int, padding: int = 0, ceil_mode: bool = False) -> int:
    """Return the output size of a convolution or pooling layer: (W + 2P - K) / S + 1, rounded down, or up with `ceil_mode`.

    Rounded up, the last window still begins inside the maps, as in PyTorch and Caffe; this needs P = 0.
    """
    count = (size + 2 * padding - kernel) // stride + 1
    return count + (ceil_mode and count * stride < size and (size - kernel) % stride > 0)


def _smallest_input(row: variants.Variant) -> int:
    """Return the smallest input size that leaves at least one pixel before the dense layers."""
    size = 1
    for record in reversed(row.layers):
        if isinstance(record, variants.Pool):
            size = (size - 1) * row.pool[1] + row.pool[0]
        elif isinstance(record, variants.Conv):
            size = max(1, (size - 1) * record.stride + record.kernel - 2 * record.padding - record.padding_after)
    return size


@torch.no_grad()
def initialize(network: AlexNet) -> None:
    """Initialize all parameters and statistics of a network, with torch's global random generator.

    The variant's `init` determines the weights. `keras`: uniform within sqrt(6 / (fan_in + fan_out)) (Glorot, Keras' default).
    `normal`: N(0, std), std from the layer, 0.01 by default (paper, section 5; 2012 source, `initW`). `he`: N(0,
    sqrt(2 / fan_in)) (tutorial 000, `Dense`). `torch`: weights and biases uniform within 1 / sqrt(fan_in) (PyTorch's default).
    Other biases are the layers' (paper: 1 in conv2, conv4, conv5, fc6 and fc7). Norms get scale 1, shift 0, mean 0, variance 1.
    """
    row = network.row
    layered = (*row.layers, variants.Dense(0))  # the last is the head
    records = [record for record in layered if isinstance(record, variants.Conv | variants.Dense)]
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer, record in zip(layers, records, strict=True):
        weight = layer.weight
        fan_in = weight[0].numel()
        match row.init:
            case "keras":
                nn.init.xavier_uniform_(weight)
            case "normal":
                nn.init.normal_(weight, std=record.std)
            case "he":
                nn.init.normal_(weight, std=math.sqrt(2 / fan_in))
            case "torch":
                nn.init.uniform_(weight, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
        if layer.bias is not None and row.init == "torch":
            nn.init.uniform_(layer.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
        elif layer.bias is not None:
            nn.init.constant_(layer.bias, record.bias or 0.0)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_parameters()
