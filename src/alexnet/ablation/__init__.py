"""Ablation studies: train with one thing changed, and compare."""
