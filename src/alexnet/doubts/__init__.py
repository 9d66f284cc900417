"""Doubts: images whose labels are probably wrong, by the predictions of networks that never saw them."""
