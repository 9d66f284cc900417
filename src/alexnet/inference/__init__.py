"""Inference: from images to logits, probabilities, features and metrics."""
