"""Hook of mkdocs.yml: pages of the site that are stored outside docs/, and the links to and from them."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]

OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""File of the repository → page of the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of OUTSIDE, with links as they are below docs/."""
    for source, page in OUTSIDE.items():
        text = re.sub(r"\]\((?:\.\./)?docs/", "](", (ROOT / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Point links to files of OUTSIDE to their pages."""
    for source, page in OUTSIDE.items():
        markdown = re.sub(rf"\]\((?:\.\./)?{re.escape(source)}(?=[)#])", f"]({page}", markdown)
    return markdown
