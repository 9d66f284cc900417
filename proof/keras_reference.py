"""Ask real Keras, and write what it says: `python -m proof.keras_reference FOLDER`.

Writes `<network>.npz` for each network, `steps.npz`, `images.npz` and `decisions.json`: what the tests compare ours with.
Nothing of the package `alexnet` is imported. `make prove` runs this anew and compares; about 70 s and 5 GB on 2 cores.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# Before TensorFlow loads. oneDNN's kernels for float32 depend on the processor and may sum in other orders and precisions;
# without them TensorFlow uses Eigen's in plain float32 and float64. And no GPU, whose convolutions may round to TF32.
os.environ |= {"TF_ENABLE_ONEDNN_OPTS": "0", "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}

import keras
import numpy as np
import tensorflow as tf
from proof import keras_callbacks, keras_data, keras_networks
from proof.inputs import QUESTIONS

tf.get_logger().setLevel("ERROR")


def write(folder: Path) -> None:
    """Write all golden files into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    for question in QUESTIONS:
        arrays = {**keras_networks.answers(question, "float64"), **keras_networks.answers(question, "float32")}
        arrays |= keras_networks.first_weights(question)
        np.savez_compressed(folder / f"{question.name}.npz", **arrays)
        print(f"{question.name}: {len(arrays)} arrays", flush=True)
    np.savez_compressed(folder / "steps.npz", **{"float64/steps": keras_callbacks.steps()})
    np.savez_compressed(folder / "images.npz", **keras_data.inputs(), **keras_data.affine())
    decisions = {
        "made with": {"keras": keras.__version__, "tensorflow": tf.__version__, "numpy": np.__version__},
        "held out": keras_data.held_out(),
        **keras_callbacks.decisions(),
    }
    text = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in decisions.items())
    (folder / "decisions.json").write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m proof.keras_reference FOLDER")
    write(Path(sys.argv[1]))
