"""A run as a network for Net2Brain: import this file, and name the run as the model of the netset `AlexNetRun`.

Layers have torchvision's names where they are in torchvision's order (`owt`), else their own. Images go through the run's own
preprocessing.

    import net2brain_model
    from net2brain.feature_extraction import FeatureExtractor

    FeatureExtractor("runs/imagenet", "AlexNetRun", device="cpu").extract("stimuli/", layers_to_extract=["features.12"])
"""

import torch
from net2brain.architectures.netsetbase import NetSetBase

import alexnet


class AlexNetRun(NetSetBase):
    """Runs of alexnet, by their folders; the name of the class is that of the netset."""

    def __init__(self, model_name: str, device: str) -> None:
        self.model_name, self.device, self.supported_data_types = model_name, device, ["image"]

    def get_model(self, pretrained):
        """Open the run."""
        self.run = alexnet.load(self.model_name, self.device)
        self.loaded_model = self.run.network
        self.layers = list(self.loaded_model.torchvision_names or self.loaded_model.layer_names)
        return self.loaded_model

    def get_preprocessing_function(self, data_type):
        """Leave preprocessing to the run."""
        return lambda image, model_name, device: image

    def get_feature_cleaner(self, data_type):
        """Return features as they are."""
        return lambda netset, features: features

    def extraction_function(self, data, layers_to_extract="all"):
        """Return the activations of an image by layer, all or those in a list, with a first axis of one image."""
        found = self.run.features(data, self.layers if isinstance(layers_to_extract, str) else layers_to_extract)
        return {name: torch.from_numpy(values) for name, values in found.items()}
