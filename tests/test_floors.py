"""Architecture: which modules may import which, and what can be imported without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import alexnet

ROOT = Path(alexnet.__file__).parent

# Layers from the bottom up; a folder or file imports from layers below its own, or from itself.
LAYERS = (
    ("scratch", "errors"),  # scratch: NumPy only, imports nothing else from the package
    ("progress", "files", "plotting"),
    ("fonts",),
    ("network",),
    ("recipe", "recipes"),
    ("data",),
    ("run",),
    ("inference", "convert"),
    ("report", "head", "page"),
    ("training", "search", "export", "extract", "rsa", "sort"),
    ("ablation", "choice", "explain", "folds", "units"),
    ("server", "doubts"),
    ("api",),
    ("cli",),
    ("__init__", "__main__"),
)
LAYER_OF = {part: level for level, names in enumerate(LAYERS) for part in names}
# Capabilities, and the others that each may use: any one can be removed with its command and its tests.
CAPABILITIES = {
    "convert",
    "choice",
    "head",
    "report",
    "training",
    "search",
    "export",
    "extract",
    "rsa",
    "units",
    "ablation",
    "explain",
    "server",
    "sort",
    "folds",
}
USED = {
    ("training", "report"),
    ("training", "convert"),
    ("training", "head"),
    ("choice", "training"),
    ("folds", "training"),
    ("doubts", "folds"),
    ("ablation", "training"),
    ("ablation", "report"),
    ("server", "explain"),
}


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> Iterator[str]:
    """Yield our modules that a file imports, on loading or later, but not those imported for type checking only."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "alexnet":
            base = (node.module or "").removeprefix("alexnet").lstrip(".")
            for name in node.names:
                inner = f"{base}.{name.name}".lstrip(".")
                yield inner if (ROOT / f"{inner.replace('.', '/')}.py").exists() else base or "__init__"


FILES = sorted(ROOT.rglob("*.py"))


def wrong_imports() -> Iterator[str]:
    """Yield the imports from the same or a higher layer, and those between capabilities."""
    for file in FILES:
        module = module_name(file)
        part = module.split(".")[0] or "__init__"
        for name in imports(file):
            other = name.split(".")[0]
            another = {part, other} <= CAPABILITIES and (part, other) not in USED
            if other != part and (LAYER_OF[other] >= LAYER_OF[part] or another):
                yield f"{module} (level {LAYER_OF[part]}) imports {name} (level {LAYER_OF[other]})"


def test_imports_from_lower_layers_only() -> None:
    assert not list(wrong_imports())


def test_no_circular_imports() -> None:
    graph = {module_name(file): set(imports(file)) for file in FILES if file.stem not in ("__init__", "__main__")}
    visited: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in visited:
            for other in graph.get(name, ()):
                visit(other, (*above, name))
            visited.add(name)

    for name in graph:
        visit(name, ())


def test_help_and_import_do_not_load_torch() -> None:
    code = (
        "import sys, alexnet, alexnet.cli\n"
        "from typer.testing import CliRunner\n"
        "result = CliRunner().invoke(alexnet.cli.app, ['train', '--help'])\n"
        "assert result.exit_code == 0 and '--recipe' in result.output, result.output\n"
        "heavy = {'torch', 'numpy', 'PIL', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"COLUMNS": "120", "TERM": "dumb"})


def test_no_module_shadows_a_public_function() -> None:
    """`import alexnet.train.loop` would replace the function `alexnet.train` with a submodule `train`."""
    inside = {file.stem for file in ROOT.glob("*.py")} | {folder.name for folder in ROOT.iterdir() if folder.is_dir()}
    assert not inside & set(alexnet.__all__)
