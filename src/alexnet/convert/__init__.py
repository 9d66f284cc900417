"""Weights of others, in and out: Keras, torchvision."""
