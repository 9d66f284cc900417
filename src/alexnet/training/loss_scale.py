"""Loss scaling, which training in float16 needs: smaller gradients than 6e-8 would become zero.

The loss is multiplied by a scale before the backward pass, and gradients are divided by it afterwards. If one of them is not
finite, the step is skipped and the scale is halved; after `STEADY` steps in a row without that, it is doubled. These are the
rules of `torch.amp.GradScaler`, which waits for the device in each step. Here nothing is read from it: the optimizer always
takes the step, and if it was to be skipped, weights and momentum are put back. The first scale is 16 times as small as there,
so that short trainings lose no steps (docs/log.md).
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

FIRST, GROWTH, BACKOFF, STEADY = 2.0**12, 2.0, 0.5, 2000
LOWEST = 2.0**-10  # so many steps in a row are skipped only if gradients are not finite at any scale


class LossScale:
    """The scale of the loss.

    Attributes:
        state: the scale, and the number of steps in a row that were not skipped, by name; on the device of the weights.
    """

    def __init__(self, device: torch.device, processes: int) -> None:
        self._processes = processes
        self.state = {
            "scale": torch.full((), FIRST, dtype=torch.float32, device=device),
            "steady": torch.zeros((), dtype=torch.int32, device=device),
        }

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss to take gradients of."""
        return loss * self.state["scale"]

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take a step by the gradients of the scaled loss; skip it if one of them is not finite, in any process."""
        scale, steady = self.state["scale"], self.state["steady"]
        weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
        overflow = torch.zeros(1, device=scale.device)
        torch._amp_foreach_non_finite_check_and_unscale_([weight.grad for weight in weights], overflow, scale.reciprocal())
        if self._processes > 1:
            dist.all_reduce(overflow)
        before = [None if tensor is None else tensor.clone() for tensor in _changing(optimizer, weights)]
        optimizer.step()
        skipped = overflow[0] > 0
        for tensor, copy in zip(_changing(optimizer, weights), before, strict=True):
            if tensor is not None:
                torch.where(skipped, torch.zeros_like(tensor) if copy is None else copy, tensor, out=tensor)
        torch._amp_update_scale_(scale, steady, overflow, GROWTH, BACKOFF, STEADY)

    def is_lost(self) -> bool:
        """Return whether the scale has fallen so far that no gradients will be finite; reads from the device."""
        return self.state["scale"].item() < LOWEST

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from the `state` in a checkpoint, which is empty if it was written in another precision."""
        for name, value in state.items():
            self.state[name].copy_(value)


def _changing(optimizer: torch.optim.Optimizer, weights: Sequence[Tensor]) -> list[Tensor | None]:
    """Return what a step changes: the weights, and their momentum, None before the first step."""
    return [*weights, *(optimizer.state.get(weight, {}).get("momentum_buffer") for weight in weights)]
