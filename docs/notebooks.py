"""Turn the notebooks into pages of the site: a MkDocs hook (`hooks` in mkdocs.yml).

Notebooks are not run here. Their output is stored in them, and `tests/test_notebooks.py` checks that it is current.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

LINK = re.compile(r"(\]\([\w./-]+)\.ipynb(#[\w-]+)?\)")
HEAD = (
    '<p class="notebook">This page is a notebook that you can download, run and edit: <a href="{0}" download>{0}</a> '
    '(<a href="{1}guide-tutorial.html">how</a>)</p>'
)


def page(notebook: dict[str, Any], name: str, docs: str = "../") -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and its pictures by file name, `<name>-1.png` and so on; `docs` is the way to docs/."""
    parts, pictures = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"]).rstrip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                file = f"{name}-{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![{cell['metadata'].get('alt', 'Output of the code above')}]({file})")
            else:
                parts.append("```{.text .output .no-copy}\n" + "".join(data["text/plain"]).rstrip() + "\n```")
    title, _, text = "\n\n".join(parts).partition("\n\n")
    return f"{title}\n\n{HEAD.format(f'{name}.ipynb', docs)}\n\n{text}\n", pictures


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add each notebook's page and pictures; the notebook itself stays available for download."""
    from mkdocs.structure.files import File  # tests import this file without MkDocs

    for file in list(files):
        path = PurePosixPath(file.src_uri)
        if path.suffix == ".ipynb":
            text, pictures = page(json.loads(file.content_string), path.stem, "../" * (len(path.parts) - 1))
            for name, content in {f"{path.stem}.md": text, **pictures}.items():
                files.append(File.generated(config, str(path.with_name(name)), content=content))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Point links to notebooks, which work in a repository viewer, to their pages."""
    return LINK.sub(lambda found: f"{found[1]}.md{found[2] or ''})", markdown)
