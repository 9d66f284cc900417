"""Shell completion: the names that arguments and options take."""

from collections.abc import Iterable
from pathlib import Path


def datasets(incomplete: str) -> list[str]:
    """Complete the names of built-in datasets, and paths."""
    from alexnet.data import builtin, imagenet, photo_sets

    return _or_paths((*builtin.NAMES, *photo_sets.NAMES, imagenet.NAME), incomplete)


def recipes(incomplete: str) -> list[str]:
    """Complete the names of built-in recipes, and paths."""
    from alexnet import recipe

    return _or_paths(recipe.names(), incomplete)


def weights(incomplete: str) -> list[str]:
    """Complete `imagenet1k`, and paths."""
    return _or_paths(["imagenet1k"], incomplete)


def variants() -> list[str]:
    """Return the names of the built-in variants."""
    from alexnet.network.variants import VARIANTS

    return list(VARIANTS)


def _or_paths(names: Iterable[str], incomplete: str) -> list[str]:
    """Return the names and paths that start with `incomplete`; nothing if no name does, as the shell then completes paths."""
    matches = [name for name in names if name.startswith(incomplete)]
    paths = (path for path in sorted(Path().glob(f"{incomplete}*")) if path.name[0] != ".") if matches else ()
    return [*matches, *(f"{path}/" if path.is_dir() else str(path) for path in paths)]
