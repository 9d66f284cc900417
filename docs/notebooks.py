"""The notebooks in tutorials/ as pages of the site: a hook of MkDocs (`hooks` in mkdocs.yml).

They are read, not run: what they print is stored in them, and `tests/test_notebooks.py` holds it to what they print today.
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
    '<p class="notebook">This page is a notebook, to be run and changed: <a href="{0}" download>{0}</a> '
    '(<a href="../guide-tutorial.html">how</a>)</p>'
)


def page(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and its pictures by the names that the text has for them, `<name>-1.png` and so on."""
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
                parts.append(f"![{cell['metadata'].get('alt', 'What the code above draws')}]({file})")
            else:
                parts.append("```{.text .output .no-copy}\n" + "".join(data["text/plain"]).rstrip() + "\n```")
    title, _, text = "\n\n".join(parts).partition("\n\n")
    return f"{title}\n\n{HEAD.format(f'{name}.ipynb')}\n\n{text}\n", pictures


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add each notebook's page and pictures; the notebook itself stays, to be downloaded."""
    from mkdocs.structure.files import File  # the tests read this file where MkDocs is not installed

    for file in list(files):
        path = PurePosixPath(file.src_uri)
        if path.suffix == ".ipynb":
            text, pictures = page(json.loads(file.content_string), path.stem)
            for name, content in {f"{path.stem}.md": text, **pictures}.items():
                files.append(File.generated(config, str(path.with_name(name)), content=content))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Let links to notebooks, which a repository's viewer shows, lead to their pages."""
    return LINK.sub(lambda found: f"{found[1]}.md{found[2] or ''})", markdown)
