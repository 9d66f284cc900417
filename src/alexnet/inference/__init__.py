"""Inference: images to logits, probabilities, features, evaluations."""
