"""The site: pages generated from the program match it, and everything public is documented."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from proof import docs

import alexnet
import test_floors
from alexnet.network.summary import summarize
from alexnet.network.variants import VARIANTS
from commands import run

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def generate() -> dict[str, Any]:
    """What docs/generate.py defines."""
    return runpy.run_path(str(ROOT / "docs" / "generate.py"))


@pytest.fixture(scope="module")
def help_page(generate: dict[str, Any]) -> str:
    """The page of commands."""
    return generate["commands_page"]()


def text(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("words", [(), ("train",), ("search", "query")], ids=" ".join)
def test_page_of_commands_is_what_they_print(words: tuple[str, ...], help_page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = run(*words, "--help")
    heading = f"# {' '.join(('alexnet', *words))}\n"
    assert f"{heading}\n```text\n{done.stdout.strip()}\n```\n" in help_page


def test_page_of_commands_has_every_command_and_option(generate: dict[str, Any], help_page: str) -> None:
    sections = dict(part.split("\n", 1) for part in re.split(r"^##+ ", help_page, flags=re.MULTILINE)[1:])
    commands = list(generate["commands"]())
    assert len(commands) == len(sections) > 20
    for words, command in commands:
        section = sections[" ".join(("alexnet", *words))]
        for option in command.params:
            if option.param_type_name == "option" and not option.hidden:
                assert set(option.opts) <= set(re.findall(r"--?[\w-]+", section)), (words, option.opts)


def test_network_page_has_the_summaries_of_all_variants(generate: dict[str, Any]) -> None:
    page = generate["on_page_markdown"](text("network.md"))
    _, shapes = page.split('<script type="application/json" id="shapes">')
    summaries = [summarize(name).to_json() for name in VARIANTS]
    assert json.loads(shapes.partition("</script>")[0]) == json.loads(json.dumps(summaries))
    for layer in summarize("paper").layers:
        count = f"{layer.parameters:,}" if layer.parameters else ""
        assert re.search(rf"^\| `{layer.name}` \| {layer.kind} \| .* \| {count} \|$", page, re.MULTILINE)


def test_every_file_is_listed(generate: dict[str, Any]) -> None:
    page = generate["on_page_markdown"](text("built.md"))
    for file in test_floors.FILES:
        assert file.stem == "__init__" or f"| `{file.name}` |" in page


@pytest.mark.parametrize("page", ["README.md", "docs/built.md"])
def test_the_tree_is_drawn_in_the_order_of_imports(page: str) -> None:
    """Each folder and file comes above everything that it imports."""
    drawn = re.findall(r"^  ([a-z]+)(?:/|\.py) ", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    levels = [test_floors.LAYER_OF[name] for name in drawn]
    assert levels == sorted(levels, reverse=True)
    assert set(drawn) == {name for name in test_floors.LAYER_OF if not name.startswith("__") and name != "recipes"}


def test_every_public_name_is_in_the_python_reference() -> None:
    page, homes = text("python.md"), {name: getattr(alexnet, name).__module__ for name in alexnet.__all__}
    there = {name: name in page if home == "alexnet.errors" else f"::: {home}.{name}\n" in page for name, home in homes.items()}
    assert not [name for name, is_there in there.items() if not is_there]


def test_links_between_pages_lead_somewhere() -> None:
    assert not [link for page in PAGES for link in docs.wrong_links(page, page.name, page.read_text(encoding="utf-8"))]


def test_every_block_says_whether_it_is_run() -> None:
    blocks = [(page.name, block) for page in PAGES for block in docs.blocks(page.read_text(encoding="utf-8"))]
    unmarked = [f"{name}:{block.line}" for name, block in blocks if not block.mark and block.language in docs.CODE]
    assert not unmarked, "say whether these are run"


def test_marks_are_read_and_blocks_are_run(tmp_path: Path) -> None:
    page = "<!-- run -->\n```python\nprint(1 + 1)\n```\n\n<!-- output -->\n```text\n2\n```\n"
    assert [(b.line, b.language, b.mark) for b in docs.blocks(page)] == [(2, "python", "run"), (7, "text", "output")]
    assert list(docs.run_page("page.md", page)) == []
    (wrong,) = docs.run_page("page.md", page.replace("\n2\n", "\n3\n"))
    assert "page.md:7: it prints\n2" in wrong
    wrong, *_ = docs.run_page("page.md", page.replace("```python\nprint(1 + 1)", "```bash\nfalse"))
    assert "exit code 1" in wrong
    (wrong,) = docs.run_page("page.md", "text\n\n```bash\nls\n```\n")
    assert "say above this block" in wrong


def test_a_page_that_loads_from_elsewhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    page = tmp_path / "site" / "index.html"
    page.write_text('<a href="https://a.example">a</a><script src="b.js"></script>')
    assert list(docs.loaded_from_elsewhere(tmp_path / "site")) == []
    page.write_text('<script src=https://a.example/b.js></script><link rel="stylesheet" href="//c.example/d.css">')
    assert len(list(docs.loaded_from_elsewhere(tmp_path / "site"))) == 2
