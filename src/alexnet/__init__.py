"""AlexNet you can use: train an image classifier on your own photos, see what it learned, predict with it.

import alexnet
run = alexnet.train("photos/", recipe="fast", out="runs/photos")
run.predict(["cat.jpg"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alexnet.api import Run, ablate, check, choose, compare, cross_validate, evaluate, find_lr, load, resume, train
    from alexnet.convert.import_weights import import_weights
    from alexnet.data.pack import shard
    from alexnet.doubts.find import find_doubts
    from alexnet.errors import AlexNetError
    from alexnet.network.alexnet import AlexNet
    from alexnet.rsa.compare import similarity
    from alexnet.sort.sort import undo_sort

__version__ = "0.1.0"
__all__ = [
    "AlexNet",
    "AlexNetError",
    "Run",
    "ablate",
    "check",
    "choose",
    "compare",
    "cross_validate",
    "evaluate",
    "find_doubts",
    "find_lr",
    "import_weights",
    "load",
    "resume",
    "shard",
    "similarity",
    "train",
    "undo_sort",
]

_HOMES = {
    "AlexNet": "alexnet.network.alexnet",
    "AlexNetError": "alexnet.errors",
    "check": "alexnet.data.check",
    "find_doubts": "alexnet.doubts.find",
    "import_weights": "alexnet.convert.import_weights",
    "shard": "alexnet.data.pack",
    "similarity": "alexnet.rsa.compare",
    "undo_sort": "alexnet.sort.sort",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import alexnet` and `alexnet --help` do not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'alexnet' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "alexnet.api")), name)
