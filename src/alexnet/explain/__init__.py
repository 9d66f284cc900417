"""Explain predictions: attribution maps, their scores and figure."""
