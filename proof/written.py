"""Let real torchvision and Keras load what `alexnet export` writes, and compare outputs and the bytes of weights.

    python -m proof.written keras FOLDER     in .venv-keras: write each tutorial's network, random weights, as a .weights.h5
    python -m proof.written ours FOLDER      read these files and write them back; write a network for torchvision, and load it
    python -m proof.written loaded FOLDER    in .venv-keras: load what was written with the tutorials' code, and compare

All networks have their full width, and get 100 pictures. The exit code is 1 if there are differences; each is a line.
"""

from __future__ import annotations

import os
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from proof.inputs import MEAN, QUESTIONS, draw_weights
from proof.pictures import picture

COUNT = 100  # pictures
TOLERANCE = 1e-4  # of the largest logit of torchvision
PROBABILITY = 1e-4  # largest allowed difference from Keras; pixels up to 255 and random weights give large logits
# What a training measures on its images.
SETTINGS: dict[str, dict[str, Any]] = {
    "annotated": {"images.mean": MEAN},
    "cifar10": {"images.cache_size": 32},
    "cifar10-1x1": {"images.cache_size": 32},
    "finetune": {"images.cache_size": 256},
}


def arrays(path: Path) -> dict[str, bytes]:
    """Return the bytes of each array of a model in an HDF5 file, without its optimizer's, by its path and shape."""
    found = {}

    def keep(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer/"):
            found[f"{name} {item.dtype} {item.shape}"] = item[()].tobytes()

    with h5py.File(path) as file:
        file.visititems(keep)
    return found


def pictures() -> Iterator[NDArray[np.uint8]]:
    """Yield pictures of various sizes, H W 3."""
    for i in range(COUNT):
        yield np.asarray(picture(i % 3, i, (150 + 7 * i % 400, 150 + 11 * i % 300)))


# In .venv-keras


def keras_builder() -> Any:
    """Import Keras, and return the function that builds a tutorial's network."""
    os.environ |= {"TF_ENABLE_ONEDNN_OPTS": "0", "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    from proof import prove_keras

    return prove_keras


def write_in_keras(folder: Path) -> list[str]:
    """Write each tutorial's network with random weights, as `model.save_weights` does."""
    prove_keras = keras_builder()
    folder.mkdir(parents=True, exist_ok=True)
    for question in QUESTIONS:
        network = prove_keras.build(question, dropout=0.5)
        variables = dict(prove_keras.named_weights(network))
        for name, values in draw_weights((name, tuple(v.shape)) for name, v in variables.items()):
            variables[name].assign(values.astype("float32"))
        network.save_weights(folder / f"{question.name}-keras.weights.h5")
    return []


def load_in_keras(folder: Path) -> list[str]:
    """Load each file of ours into the tutorial's network; return a line for each that differs."""
    prove_keras = keras_builder()
    found = []
    for question in QUESTIONS:
        network = prove_keras.build(question, dropout=0.5)
        with warnings.catch_warnings(action="ignore"):  # the file has no state of the optimizer
            network.load_weights(folder / f"{question.name}.weights.h5")
        with np.load(folder / f"{question.name}.npz") as file:
            off = float(np.abs(network.predict(file["inputs"], batch_size=20, verbose=0) - file["probabilities"]).max())
        print(f"{question.name:14} {COUNT} pictures in Keras: probabilities within {off:.1e}", flush=True)
        network.save_weights(folder / "again.weights.h5")
        if arrays(folder / "again.weights.h5") != arrays(folder / f"{question.name}.weights.h5"):
            found.append(f"{question.name}: Keras writes other bytes than it loaded")
        if not off <= PROBABILITY:
            found.append(f"{question.name}: probabilities are off by {off:.1e}")
    return found


# In .venv


def make_run(recipe_name: str, classes: int, path: Path, fill: Any) -> Any:
    """Make a run folder without training; `fill` gives its network, on the device `meta`, its weights. Return the run."""
    import alexnet
    from alexnet import recipe
    from alexnet.files import write_text
    from alexnet.run import ModelConfig, create, save_model

    made = recipe.load(recipe_name).with_settings(SETTINGS.get(recipe_name, {}))
    config = ModelConfig.of(made, tuple(f"{i:03}" for i in range(classes)), made.images.resolved())
    network = config.network()
    fill(network)
    folder = create(path)
    write_text(folder.recipe, made.to_toml())
    save_model(folder, network, config)
    return alexnet.load(path, "cpu")


def logits_of(run: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what the network of a run gets for the pictures, N 3 I I, and its logits."""
    import torch

    from alexnet.data.preprocessing import pixels, to_input

    images = run.config.preprocessing
    inputs = torch.cat([to_input(torch.from_numpy(pixels(image, images).copy())[None], images) for image in pictures()])
    with torch.inference_mode():
        logits = torch.cat([run.network(part) for part in inputs.split(20)])
    return inputs.contiguous().numpy(), logits.numpy()


def rewrite(folder: Path) -> list[str]:
    """Read each file of Keras and write it back, with our probabilities; return a line for each whose weights differ."""
    from scipy.special import softmax

    from alexnet.convert.keras_weights import load_keras

    found = []
    for question in QUESTIONS:
        theirs, ours = folder / f"{question.name}-keras.weights.h5", folder / f"{question.name}.weights.h5"
        run = make_run(
            question.name, question.classes, folder / f"run-{question.name}", lambda net, f=theirs: load_keras(f, net)
        )
        result = run.export_keras(ours, overwrite=True)
        wanted = arrays(theirs)
        same = arrays(ours) == wanted
        print(
            f"{question.name:14} Keras to ours to Keras: {len(wanted)} arrays, {'the same' if same else 'other'} bytes",
            flush=True,
        )
        if not same or result["notes"]:
            found.append(f"{question.name}: the weights differ from those of Keras, or need {result['notes']}")
        inputs, logits = logits_of(run)
        np.savez(folder / f"{question.name}.npz", inputs=inputs.transpose(0, 2, 3, 1), probabilities=softmax(logits, 1))
    return found


def torchvision_both_ways(folder: Path) -> list[str]:
    """Take a network of torchvision's into a run and back, in both formats; return a line for each difference."""
    import torch

    from alexnet.convert.torchvision import read_torchvision

    # torchvision registers C++ operators, which an AlexNet needs none of, and which need the very torch that it was built with.
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
    import torchvision

    torch.manual_seed(0)
    theirs = torchvision.models.alexnet(num_classes=1000).state_dict()
    torch.save(theirs, folder / "torchvision.pth")

    def fill(network: Any) -> None:
        tensors = read_torchvision((folder / "torchvision.pth").read_bytes(), folder / "torchvision.pth")
        network.load_state_dict(tensors, assign=True)

    run, found = make_run("finetune", 1000, folder / "run-torchvision", fill), []
    inputs, logits = logits_of(run)
    for name in ("ours.pth", "ours.safetensors"):
        result = run.export_torchvision(folder / name, overwrite=True)
        loaded: dict[str, Any] = {}
        exec("\n".join(result["python"]), loaded)  # noqa: S102 - as printed
        network = loaded["network"]
        state = network.state_dict()
        same = list(state) == list(theirs) and all(
            state[key].shape == theirs[key].shape and state[key].numpy().tobytes() == theirs[key].numpy().tobytes()
            for key in theirs
        )
        with torch.inference_mode():
            wanted = torch.cat([network(part) for part in torch.from_numpy(inputs).split(20)]).numpy()
        off = float((np.abs(logits - wanted).max(1) / np.abs(wanted).max(1)).max())
        print(f"{name:14} torchvision to ours to torchvision: {'the same' if same else 'other'} bytes", flush=True)
        print(f"{name:14} {COUNT} pictures in torchvision: logits within {off:.1e} of the largest", flush=True)
        if not same or not off <= TOLERANCE:
            found.append(f"{name}: the weights differ from torchvision's, or logits are off by {off:.1e}")
    return [*found, *layer_names(run, network, inputs[:2])]


def layer_names(run: Any, theirs: Any, inputs: NDArray[np.float32]) -> list[str]:
    """Compare all layers of torchvision's network with ours of the same names; return a line for each output that differs.

    Its ReLUs change their input in place, so that `features.0` would hold the values of `features.1`: here they do not.
    """
    import torch

    outputs: dict[str, Any] = {}
    for name, module in theirs.named_modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False
        if "." in name:
            module.register_forward_hook(lambda _, __, output, name=name: outputs.__setitem__(name, output))
    x = torch.from_numpy(inputs)
    with torch.inference_mode():
        theirs(x)
        ours = run.network.activations(x, list(outputs))[1]
    off = {name: float((ours[name] - wanted).abs().max() / wanted.abs().max()) for name, wanted in outputs.items()}
    print(f"{'layer names':14} {len(off)} layers of torchvision: within {max(off.values()):.1e} of the largest", flush=True)
    return [f"{name}: our output of that name differs by {value:.1e}" for name, value in off.items() if not value <= TOLERANCE]


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["keras", target]:
            lines = write_in_keras(Path(target))
        case ["ours", target]:
            lines = [*torchvision_both_ways(Path(target)), *rewrite(Path(target))]
        case ["loaded", target]:
            lines = load_in_keras(Path(target))
        case _:
            lines = ["usage: python -m proof.written keras|ours|loaded FOLDER"]
    sys.exit("\n".join(lines) or None)
