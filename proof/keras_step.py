"""Training steps of a tutorial's network in Keras, one for each line on standard input.

    python -m proof.keras_step NETWORK BATCH POLICY

Prints a line when it is ready, then the seconds of each step. POLICY is Keras' dtype policy; float32 is as the text has it.
"""

from __future__ import annotations

import os
import sys
import time

os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}

import keras
import numpy as np
import tensorflow as tf
from proof.inputs import QUESTIONS
from proof.keras_networks import build

if __name__ == "__main__":
    name, batch, policy = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    keras.config.set_dtype_policy(policy)
    question = next(question for question in QUESTIONS if question.name == name)
    network = build(question, dropout=0.5)
    rng = np.random.default_rng(0)
    images = tf.constant(rng.normal(size=(batch, question.size, question.size, 3)), tf.float32)
    targets = tf.constant(rng.integers(0, question.classes, batch))
    float(network.train_on_batch(images, targets))  # traces the graph
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        float(network.train_on_batch(images, targets))
        print(time.perf_counter() - start, flush=True)
