"""Heat maps by name: captum's methods, run on our networks.

The random ones draw the same for every image, so the same call gives the same map. Where a method needs an image that shows
nothing, it is grey, the mean colour of the training images.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from alexnet.errors import AlexNetError, suggest
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import seeded
from alexnet.network.lrn import LocalMapNorm, LocalResponseNorm

PATCH = 1 / 6  # fraction of the image's side that a patch covers (occlusion); patches are half a patch apart
GRID = 8  # squares per side that are made grey as a whole (feature ablation, kernel SHAP)
STEPS = 32  # on the path from a grey image (integrated gradients)
SAMPLES = 32  # noisy images (SmoothGrad, gradient SHAP)
NOISE = 0.15  # standard deviation of the noise, as a fraction of the image's range (Smilkov and others 2017)
COALITIONS = 512  # sets of squares (kernel SHAP)
BATCH = 32


class Output(nn.Module):
    """What a map is about, by image: a label's logit, or its log-odds, which also take the other labels into account.

    The log-odds, log p / (1 - p), still change when the network is certain.
    """

    def __init__(self, network: AlexNet, target: int, upscale: int, log_odds: bool) -> None:
        super().__init__()
        self.network, self.target, self.upscale, self.log_odds = network, target, upscale, log_odds

    def forward(self, x: Tensor) -> Tensor:
        """N 3 I I -> N."""
        logits: Tensor = self.network(x, self.upscale).float()
        if not self.log_odds:
            return logits[:, self.target]
        others = torch.cat([logits[:, : self.target], logits[:, self.target + 1 :]], 1)
        return logits[:, self.target] - others.logsumexp(1)


Attribute = Callable[[Any, Output, Tensor, nn.Module], Tensor]  # captum's module, output, its input 1 3 I I, a layer -> I I


def _grad_cam(captum: Any, output: Output, x: Tensor, layer: nn.Module) -> Tensor:
    heat = captum.LayerGradCam(output, layer).attribute(x, relu_attributions=True)
    return interpolate(heat, size=x.shape[2:], mode="bilinear")[0, 0]


def _occlusion(captum: Any, output: Output, x: Tensor, layer: nn.Module) -> Tensor:
    patch = max(1, round(x.shape[2] * PATCH))
    stride = max(1, patch // 2)
    options: dict[str, Any] = {"baselines": 0.0, "perturbations_per_eval": BATCH}
    heat: Tensor = captum.Occlusion(output).attribute(x, (3, patch, patch), (3, stride, stride), **options)
    return heat[0, 0]  # the same in each channel


def _integrated_gradients(captum: Any, output: Output, x: Tensor, layer: nn.Module) -> Tensor:
    options: dict[str, Any] = {"baselines": 0.0, "n_steps": STEPS, "internal_batch_size": BATCH}
    return _sum(captum.IntegratedGradients(output).attribute(x, **options))


def _saliency(captum: Any, output: Output, x: Tensor, layer: nn.Module) -> Tensor:
    return _largest(captum.Saliency(output).attribute(x))


def _smooth_grad(captum: Any, output: Output, x: Tensor, layer: nn.Module) -> Tensor:
    noise = NOISE * float(x.max() - x.min())
    tunnel = captum.NoiseTunnel(captum.Saliency(output))
    return _largest(tunnel.attribute(x, nt_type="smoothgrad", nt_samples=SAMPLES, nt_samples_batch_size=BATCH, stdevs=noise))


def _guided_grad_cam(captum: Any, output: Output, x: Tensor, layer: nn.Module) -> Tensor:
    return _sum(captum.GuidedGradCam(output, layer).attribute(x, interpolate_mode="bilinear"))


def _gradient_shap(captum: Any, output: Output, x: Tensor, layer: nn.Module) -> Tensor:
    noise = NOISE * float(x.max() - x.min())
    return _sum(captum.GradientShap(output).attribute(x, torch.zeros_like(x), n_samples=SAMPLES, stdevs=noise))


def _feature_ablation(captum: Any, output: Output, x: Tensor, layer: nn.Module) -> Tensor:
    options: dict[str, Any] = {"baselines": 0.0, "feature_mask": _squares(x), "perturbations_per_eval": BATCH}
    heat: Tensor = captum.FeatureAblation(output).attribute(x, **options)
    return heat[0, 0]


def _kernel_shap(captum: Any, output: Output, x: Tensor, layer: nn.Module) -> Tensor:
    options: dict[str, Any] = {"baselines": 0.0, "feature_mask": _squares(x), "perturbations_per_eval": BATCH}
    heat: Tensor = captum.KernelShap(output).attribute(x, n_samples=COALITIONS, **options)
    return heat[0, 0]


def _squares(x: Tensor) -> Tensor:
    """Return the number of the square in which each pixel lies: 1 1 I I, squares numbered row by row."""
    place = torch.arange(x.shape[2], device=x.device) * GRID // x.shape[2]
    return (place[:, None] * GRID + place)[None, None]


def _sum(heat: Tensor) -> Tensor:
    return heat[0].sum(0)


def _largest(heat: Tensor) -> Tensor:
    return heat[0].amax(0)


def _by_pixel(name: str, *arguments: Any) -> Attribute:
    """Return a method that captum has under this name and that needs nothing but the image and `arguments`."""
    return lambda captum, output, x, layer: _sum(getattr(captum, name)(output).attribute(x, *arguments))


def _has_relus(network: AlexNet) -> bool:
    return any(isinstance(layer, nn.ReLU) for layer in network.layers.values())


def _suits_deep_lift(network: AlexNet) -> bool:
    """Return whether captum has a rule for each layer: its rule for pooling adds nothing up where windows overlap."""
    norms = any(isinstance(layer, LocalResponseNorm | LocalMapNorm) for layer in network.layers.values())
    return not norms and network.row.pool[0] <= network.row.pool[1]


@dataclass(frozen=True)
class Method:
    """A way to compute a heat map.

    Attributes:
        title: above its panel; `{layer}` is the layer that Grad-CAM looks at.
        attribute: computes the map.
        log_odds: whether the map is about the label's log-odds, not its logit.
        suits: whether the method is right for a network, and in words what it needs.
    """

    title: str
    attribute: Attribute
    log_odds: bool = False
    suits: tuple[Callable[[AlexNet], bool], str] = (lambda network: True, "")


RELU = (_has_relus, "needs ReLUs, which this network does not have")
POOLS = (_suits_deep_lift, "cannot follow response norms, or pooling windows that overlap (as model.pool=[2,2] would not)")

METHODS = {
    "grad_cam": Method("Grad-CAM at {layer}: where it sees it", _grad_cam, log_odds=True),
    "occlusion": Method("Occlusion: what it needs to see", _occlusion, log_odds=True),
    "integrated_gradients": Method("Integrated gradients: by pixel", _integrated_gradients),
    "saliency": Method("Saliency: size of the gradient", _saliency),
    "smooth_grad": Method("SmoothGrad: mean saliency", _smooth_grad),
    "input_x_gradient": Method("Input times gradient", _by_pixel("InputXGradient")),
    "guided_backprop": Method("Guided backprop", _by_pixel("GuidedBackprop"), suits=RELU),
    "deconvolution": Method("Deconvolution", _by_pixel("Deconvolution"), suits=RELU),
    "guided_grad_cam": Method("Guided Grad-CAM at {layer}", _guided_grad_cam, suits=RELU),
    "gradient_shap": Method("Gradient SHAP", _gradient_shap),
    "deep_lift": Method("DeepLIFT", _by_pixel("DeepLift", 0.0), suits=POOLS),
    "feature_ablation": Method("Ablation: each square made grey", _feature_ablation, log_odds=True),
    "kernel_shap": Method("Kernel SHAP: by square", _kernel_shap, log_odds=True),
}
DEFAULT = ("grad_cam", "occlusion", "integrated_gradients")


def check(names: str | Sequence[str], network: AlexNet) -> tuple[str, ...]:
    """Return the names of methods, each once, if there are such methods and they are right for a network."""
    chosen = tuple(dict.fromkeys([names] if isinstance(names, str) else names))
    if not chosen:
        raise AlexNetError(f"no method: name one or more of {', '.join(METHODS)}")
    for name in chosen:
        if name not in METHODS:
            raise AlexNetError(f"no method {name!r}: {suggest(name, METHODS)}")
        suits, why_not = METHODS[name].suits
        if not suits(network):
            raise AlexNetError(f"method {name!r} {why_not}: choose another, such as occlusion")
    return chosen


def heat_map(
    name: str, network: AlexNet, x: Tensor, target: int, upscale: int = 1, layer: str | None = None
) -> NDArray[np.float32]:
    """Return the heat map of a method for an output of a network in evaluation mode, I I float32.

    Args:
        name: of a method in `METHODS`.
        network: a network that it suits (`check`).
        x: its input, 1 3 I I.
        target: position of the label.
        upscale: of the input, as for `AlexNet.forward`.
        layer: whose maps Grad-CAM looks at, by default the last.
    """
    captum, method = _captum(), METHODS[name]
    module = network.layers[network.layer_name(layer or last_maps(network))]
    with seeded(x.device):
        heat = method.attribute(captum, Output(network, target, upscale, method.log_odds), x, module)
    return np.asarray(heat.detach().float().cpu())


def map_layers(network: AlexNet) -> dict[str, str]:
    """Return for each convolution the layer that activates it: `{"conv1": "relu1", …}`."""
    names = network.layer_names
    activated = {conv: f"{network.row.activation}{conv.removeprefix('conv')}" for conv in names if conv.startswith("conv")}
    return {conv: layer for conv, layer in activated.items() if layer in names}


def last_maps(network: AlexNet) -> str:
    """Return the layer that activates the last convolution."""
    return list(map_layers(network).values())[-1]


def _captum() -> Any:
    """Import captum's methods, or raise an AlexNetError if they are not installed."""
    try:
        import captum.attr
    except ImportError as error:
        raise AlexNetError(f"explaining needs captum ({error}): pip install captum") from error
    for text in ("Setting backward hooks", "Setting forward, backward hooks", "Input Tensor 0 did not already require"):
        warnings.filterwarnings("ignore", text, UserWarning)  # of what it undoes afterwards
    return captum.attr
