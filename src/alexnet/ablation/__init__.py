"""Ablation studies: train with one setting changed, over several seeds, and compare."""

import tomllib
from importlib.resources import files
from typing import Any

STUDIES: dict[str, dict[str, Any]] = tomllib.loads((files(__name__) / "studies.toml").read_text(encoding="utf-8"))
