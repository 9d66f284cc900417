"""A run as a model for Brain-Score: a file to copy to brainscore_vision/models/NAME/__init__.py, for `model="NAME"`.

Layers have torchvision's names where they are in torchvision's order (`owt`), else their own. Images go through the run's own
preprocessing, from their files.

    ALEXNET_RUN=runs/imagenet brainscore_vision --model_identifier=NAME --benchmark_identifier=MajajHong2015public.IT-pls
"""

import os
from collections import OrderedDict
from pathlib import Path

from brainscore_vision import model_registry
from brainscore_vision.model_helpers.activations.core import ActivationsExtractorHelper
from brainscore_vision.model_helpers.brain_transformation import ModelCommitment

import alexnet


class Activations:
    """What Brain-Score asks for the activations of images."""

    def __init__(self, path: str) -> None:
        self.run = alexnet.load(path)
        self.identifier = f"alexnet-{self.run.config.sha256[:12]}"  # Brain-Score stores activations by this name
        self._extractor = ActivationsExtractorHelper(self.activations, preprocessing=None, identifier=self.identifier)
        self._extractor.insert_attrs(self)

    def __call__(self, *arguments, **options):
        """Return the activations as Brain-Score packs them."""
        return self._extractor(*arguments, **options)

    def activations(self, images, layers):
        """Return the activations of layers by name; `logits` are those of the last layer."""
        ours = {layer: "fc8" if layer == "logits" else layer for layer in layers}
        found = self.run.features([str(image) for image in images], list(ours.values()))
        return OrderedDict((layer, found[name]) for layer, name in ours.items())


def model() -> ModelCommitment:
    """Return the run as a model; for each brain region, Brain-Score chooses one of its activations, pooled or not."""
    activations = Activations(os.environ["ALEXNET_RUN"])
    network = activations.run.network
    layers = [name for name in network.torchvision_names or network.layer_names if _is_activation(network.layer_name(name))]
    return ModelCommitment(activations.identifier, activations, layers)


def _is_activation(name: str) -> bool:
    return name.startswith(("relu", "tanh", "pool"))


model_registry[Path(__file__).parent.name] = model
