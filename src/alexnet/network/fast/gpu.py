"""Response normalisation on GPUs, by the kernel of triton_norm.py.

Without Triton, which PyTorch's CUDA builds bring, on GPUs before Ampere, or with ALEXNET_KERNELS=0 in the environment,
PyTorch's own operations are used instead.
"""

import functools

import torch
from torch import Tensor
from torch.nn.functional import local_response_norm

from alexnet.errors import truncate
from alexnet.network.fast.kernels import enabled
from alexnet.network.fast.kernels.operations import traced

TYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST = 16  # window; compiling takes time with its square: 3 s for this one


def usable(images: Tensor, size: int) -> bool:
    """Return whether the kernel takes these images and this window: on a GPU, and not being traced."""
    if traced(images) or images.device.type != "cuda" or images.dtype not in TYPES or not images.numel() or size > LARGEST:
        return False
    return enabled() and missing_reason(images.device) is None


def response_norm(images: Tensor, size: int, alpha: float, beta: float, k: float, towers: int, *, relu: bool) -> Tensor:
    """Normalise N C H W as `lrn.LocalResponseNorm` does, in one pass over memory each for forward and backward."""
    from alexnet.network.fast.triton_norm import Norm, ResponseNorm

    norm = Norm(size, float(alpha), float(beta), float(k), images.shape[1] // towers, relu)  # Triton would compile for each int
    return ResponseNorm.apply(images, norm)  # type: ignore[no-any-return, no-untyped-call]


@functools.cache
def missing_reason(device: torch.device) -> str | None:
    """Return why the kernel is not used on a GPU, None if it is.

    Triton compiles it for this GPU, with tools that may be missing or too old, so it is tried out first.
    """
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than Ampere"
    try:
        right = _computes_right(device)
    except torch.OutOfMemoryError:
        raise  # says nothing about the kernel
    except Exception as error:  # Triton, the compilers that it calls, and the driver raise their own
        return truncate(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", 200)
    return None if right else "it does not compute what PyTorch does"


def _computes_right(device: torch.device) -> bool:
    """Compare a few values and their gradient with PyTorch's own norm on the CPU."""
    from alexnet.network.fast.triton_norm import Norm, backward, forward

    size, alpha, beta, k = 5, 0.1, 0.75, 2.0
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        images = torch.linspace(-3, 3, 2 * 16 * 5 * 9, dtype=torch.float32, device="cpu")
        images = images.view(2, 5, 9, 16).permute(0, 3, 1, 2).requires_grad_()
        expected = local_response_norm(images, size, alpha * size, beta, k)
        (expected_gradient,) = torch.autograd.grad(expected, images, images)
    maps, norm = images.detach().to(device), Norm(size, alpha, beta, k, images.shape[1], relu=False)
    pairs = ((forward(maps, norm), expected.detach()), (backward(maps, maps, norm), expected_gradient))
    return all(torch.allclose(found.cpu(), wanted, rtol=1e-4, atol=1e-5) for found, wanted in pairs)
