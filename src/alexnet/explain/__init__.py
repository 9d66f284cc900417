"""Explain predictions: attribution maps and their figure."""
