"""Recipes: TOML files."""
