"""The documentation: its links, the strict build of the site, and that the site needs no other host."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import her2batch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def relative_links(page: Path) -> list[str]:
    """Link targets of a Markdown page that are files of the repository, without their anchors."""
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", page.read_text(encoding="utf-8"))
    return [target for target in targets if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    assert [target for target in relative_links(page) if not (page.parent / target).exists()] == []


def test_every_public_name_is_documented() -> None:
    public = {name: getattr(her2batch, name) for name in her2batch.__all__}
    assert [name for name, value in public.items() if callable(value) and not inspect.getdoc(value)] == []


@pytest.mark.slow
def test_site_builds_strictly_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES)
    loaded = r"<(?:script|img|iframe)[^>]*src=[\"']?https?:|<link[^>]*rel=[\"']?stylesheet[^>]*href=[\"']?https?:"
    assert [page.name for page in pages if re.search(loaded, page.read_text(encoding="utf-8"))] == []
    assert not re.search(r"@import[^;]*https?:", "".join(css.read_text() for css in tmp_path.rglob("*.css")))


def test_no_page_or_message_names_her2batch_as_a_package_of_the_registry() -> None:
    """It is installed from its source folder: `pip install '.[serve]'`; another package could have the name there."""
    text_files = {".py", ".md", ".toml", ".html", ".js", ".yaml", ".yml", ".sh", ".service", ".timer", ".conf", ".cff"}
    folders = ("her2batch", "docs", "cluster", "jobs", "benchmarks")
    files = [path for name in folders for path in (ROOT / name).rglob("*") if path.suffix in text_files]
    registry = re.compile(r"her2batch\[|(?:pip|pipx|uv)\s+(?:\w+\s+)*(?:-\S+\s+)*['\"]?her2batch\b(?!-)")
    assert len(files) > 200
    for path in [*files, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "pyproject.toml"]:
        assert registry.findall(path.read_text(encoding="utf-8")) == [], path
