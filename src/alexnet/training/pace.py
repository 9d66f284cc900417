"""How fast this machine trains, measured before the dataset is decoded, to choose settings that depend on it."""

import time

import torch
from torch.nn.functional import cross_entropy

from alexnet.data.dataset import LARGE, resolve
from alexnet.data.table import Table
from alexnet.network.alexnet import AlexNet
from alexnet.network.device import autocast, in_its_format, is_out_of_memory, release_memory, seeded, to_device
from alexnet.progress import say
from alexnet.recipe import Recipe
from alexnet.training.distributed import SINGLE, ProcessGroup

IMAGES, WARM_UP, STEPS = 32, 1, 2  # two seconds at 50 images per second


def resolve_by_pace(recipe: Recipe, table: Table, device: torch.device, group: ProcessGroup = SINGLE) -> Recipe:
    """Resolve the settings that depend on the pace of the machine, if training follows the clock.

    The main process measures it, so that all processes agree.
    """
    if not recipe.train.minutes or "auto" not in (recipe.images.input, recipe.augment.trivial, recipe.model.dropout):
        return recipe

    def rate() -> float:
        say("measuring how fast this machine trains, to choose input size, augmentation and dropout")
        return group.world_size * images_per_second(recipe, len(table.labels), device)

    settings = dict[str, object]()
    if group.is_main:
        settings = settings_by_pace(resolve(recipe, table, rate))
    return recipe.with_settings(group.broadcast(settings))


def settings_by_pace(resolved: Recipe) -> dict[str, object]:
    """Return the settings of a resolved recipe that may depend on the pace."""
    images = {"images.input": resolved.images.input, "images.cache_size": resolved.images.cache_size}
    return images | {"augment.trivial": resolved.augment.trivial, "model.dropout": resolved.model.dropout}


def images_per_second(recipe: Recipe, classes: int, device: torch.device) -> float:
    """Measure on how many images of `LARGE` pixels a second the recipe's network is trained, forward and back.

    It is 0 if the device's memory is too small for `IMAGES` of them.
    """
    try:
        with seeded(device):
            return IMAGES * STEPS / _seconds(recipe, classes, device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return 0.0
    finally:
        release_memory()


def _seconds(recipe: Recipe, classes: int, device: torch.device) -> float:
    """Return the time that `STEPS` take, after others to warm up."""
    network = to_device(AlexNet(recipe.model.variant, classes, width=recipe.model.width, **recipe.model.overrides), device)
    images = in_its_format(torch.rand(IMAGES, 3, LARGE, LARGE, device=device))
    targets = torch.arange(IMAGES, device=device) % classes
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            began = time.monotonic()
        with autocast(device, recipe.train.precision):
            logits = network(images)
        loss = cross_entropy(logits.float(), targets)
        torch.autograd.backward(loss)
        network.zero_grad()
        loss.item()  # waits for the device
    return time.monotonic() - began
