"""Six training steps for each kind of parallelism, for test_parallel.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from alexnet.data.batches import Batch
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import to_device
from alexnet.recipe import Optimizer, Train
from alexnet.training.distributed import ProcessGroup, process_group
from alexnet.training.optimizer import Loss, build_optimizer
from alexnet.training.parallel import Parallel, ParallelModel

STEPS, IMAGES, CLASSES = 6, 23, 5  # 23 is divisible by neither 2 nor 4
RATE = 1e-4


@dataclass(frozen=True)
class Case:
    """A training; `overrides` change fields of the variant's row."""

    kind: Parallel
    variant: str
    dtype: torch.dtype
    overrides: dict[str, Any]
    balanced: bool = False

    def runs_on(self, processes: int) -> bool:
        """Whether to test this number of processes: two for towers; four in float64 only, where they round as two do."""
        return processes < 3 or (self.kind != "towers" and self.dtype == torch.float64)

    @property
    def steps(self) -> int:
        """The number of steps to compare: in float32 only one, as a ReLU near zero may then switch, and the losses diverge."""
        return STEPS if self.dtype == torch.float64 else 1

    @property
    def name(self) -> str:
        """What distinguishes this case from the others."""
        what = "-".join(f"{key}={value}" for key, value in self.overrides.items())
        return f"{self.kind} {self.variant} {what} {self.dtype}".replace("torch.", "") + " balanced" * self.balanced


KINDS: dict[Parallel, tuple[str, ...]] = {
    "data": ("cifar10", "paper"),
    "hybrid": ("cifar10", "owt"),
    "towers": ("paper", "code2012"),
}
CASES = [
    Case(kind, variant, dtype, {"dropout": dropout})
    for kind, variants in KINDS.items()
    for variant in variants
    for dtype, dropout in ((torch.float64, 0.5), (torch.float32, 0.0))
]
CASES += [Case("towers", "paper", torch.float64, {"norm": "batch"}), Case("data", "paper", torch.float64, {}, balanced=True)]


def run(case: Case, group: ProcessGroup) -> dict[str, Tensor]:
    """Return the loss of each step, and the weights and statistics before the first and after the last step."""
    torch.manual_seed(1)
    network = to_device(AlexNet(case.variant, CLASSES, width=1 / 16, **case.overrides).to(case.dtype), torch.device("cpu"))
    model = ParallelModel(network, group, case.kind if group.world_size > 1 else "data", synchronised=True)
    first = {
        f"first {case.name}/{name}": tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }
    optimizer = build_optimizer(model.network, Optimizer(form="2012", lr=RATE))
    targets = np.random.default_rng(0).integers(CLASSES, size=IMAGES * STEPS)
    train = Train(class_weights="balanced" if case.balanced else "none")
    loss_of, losses = Loss(train, targets, CLASSES, torch.device("cpu")), []
    model.network.train()
    for step in range(case.steps):
        rng = torch.Generator().manual_seed(step)
        count = IMAGES - step % 3
        images = torch.randn(count, 3, 67, 67, generator=rng, dtype=torch.float64).to(case.dtype)
        [(start, end)] = model.local_bounds([(0, count)])
        batch = Batch(images[start:end], torch.from_numpy(targets[step * IMAGES :][start:end]))
        model.batch_size = count
        torch.manual_seed(step)
        optimizer.zero_grad()
        labels = model.targets(batch.targets)
        [whole] = model.sum(loss_of.normalizer(labels))
        loss = loss_of(model.forward(batch.images), labels) * (loss_of.normalizer(labels) / whole)
        torch.autograd.backward(loss)
        optimizer.step()
        losses += model.sum(loss.item())
    model.gather_weights()
    weights = {f"{case.name}/{name}": tensor.contiguous() for name, tensor in network.state_dict().items()}
    return {f"{case.name}/losses": torch.tensor(losses, dtype=torch.float64), **weights, **first}


def main(out: str) -> None:
    """Write the losses and the full initial and final weights of all cases with this number of processes."""
    with process_group() as group:
        cases = [case for case in CASES if case.runs_on(group.world_size)]
        result = {name: tensor for case in cases for name, tensor in run(case, group).items()}
        if group.is_main:
            safetensors.torch.save_file(result, out)
