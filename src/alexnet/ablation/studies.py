"""Claims of the paper and of the tutorials, a row each, for `alexnet ablate` to train and to measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Study:
    """A claim, and the trainings that look at it.

    `arms` are the settings of a recipe that differ, by name: the first arm is the one that the others are compared with.
    `settings` are the same in all. `claimed` is what the source says of an arm. `measure` is the accuracy at the end, or the
    steps to the training error `stop.train_error`. Where there are `scales`, each arm trains at the best one for it: all rates
    of the recipe are multiplied by it, and it is chosen on a seed of its own.
    """

    name: str
    claim: str
    source: str
    arms: Mapping[str, Mapping[str, Any]]
    claimed: Mapping[str, str]
    recipe: str = "fast"
    dataset: str = "cifar10"
    settings: Mapping[str, Any] = field(default_factory=dict)
    measure: Literal["accuracy", "steps"] = "accuracy"
    scales: tuple[float, ...] = ()


PAPER = "Krizhevsky, Sutskever, Hinton 2012"
# 100 pixels throughout, as pools of 3x3 and of 2x2 then leave maps of the same sizes: 23, 11, 5, 2.
SAME_MAPS = {"images.input": 100, "schedule.progressive_resize": []}

ROWS = (
    Study(
        "relu-tanh",
        "A four-layer network with ReLU reaches 25 % training error on CIFAR-10 six times as fast as one with tanh, each at "
        "its own best rate, without regularisation",
        f"{PAPER}, section 3.1 and figure 1",
        recipe="four-layer",
        settings={"stop.train_error": 0.25},
        measure="steps",
        scales=(1.0, 3.0, 0.3, 10.0),
        arms={"ReLU": {"model.activation": "relu"}, "tanh": {"model.activation": "tanh"}},
        claimed={"tanh": "six times the epochs"},
    ),
    Study(
        "pooling",
        "Pools that overlap (3x3, stride 2) make fewer errors than pools side by side (2x2, stride 2)",
        f"{PAPER}, section 3.4; tutorial 000 says the same",
        settings=SAME_MAPS,
        arms={"overlapping": {"model.pool": [3, 2]}, "side by side": {"model.pool": [2, 2]}},
        claimed={"side by side": "0.4 points less (ImageNet)"},
    ),
    Study(
        "norm",
        "Local response normalisation after the first two layers makes fewer errors than none; batch normalisation came later",
        f"{PAPER}, section 3.3; the network is that of tutorial 001's table",
        settings={**SAME_MAPS, "model.variant": "table"},
        scales=(0.3, 0.1, 1.0),
        arms={
            "local response": {"model.norm": "local"},
            "none": {"model.norm": "none"},
            "batch": {"model.norm": "batch"},
        },
        claimed={"none": "1.4 points less (ImageNet), 2 less (CIFAR-10, a four-layer network)"},
    ),
    Study(
        "dropout",
        "Without dropout the network overfits substantially; with it, it takes about twice as many steps to converge",
        f"{PAPER}, section 4.2; the tutorials follow it",
        settings=SAME_MAPS,
        arms={"dropout 0.5": {"model.dropout": 0.5}, "none": {"model.dropout": 0.0}},
        claimed={"none": "overfits; half the steps"},
    ),
    Study(
        "augmentation",
        "Without random crops and mirror images the network overfits substantially; random colours take another point off its "
        "error",
        f"{PAPER}, section 4.1; crops are shifts by up to an eighth here",
        settings=SAME_MAPS,
        arms={
            "shift and mirror": {"augment.shift": 0.125, "augment.horizontal_flip": "auto", "augment.colour_noise": 0.0},
            "none": {
                "augment.shift": 0.0,
                "augment.horizontal_flip": False,
                "augment.alternating_flip": False,
                "augment.colour_noise": 0.0,
            },
            "and colour": {"augment.shift": 0.125, "augment.horizontal_flip": "auto", "augment.colour_noise": 0.1},
        },
        claimed={"none": "overfits", "and colour": "over 1 point more (ImageNet)"},
    ),
    Study(
        "towers",
        "Two towers make fewer errors than one of half the channels, which is one of them alone",
        f"{PAPER}, section 3.2, where conv5 and the dense layers of the one tower are not halved; here they are, and batch "
        "normalisation lets both train in little time",
        settings={**SAME_MAPS, "model.variant": "paper", "model.norm": "batch"},
        scales=(1.0, 0.3),
        arms={
            "two towers": {"model.towers": 2, "model.width": 1.0},
            "one, half the channels": {"model.towers": 1, "model.width": 0.5},
            "one, all channels": {"model.towers": 1, "model.width": 1.0},
        },
        claimed={"one, half the channels": "1.7 points less (ImageNet)"},
    ),
)

STUDIES = {row.name: row for row in ROWS}
