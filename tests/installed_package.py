"""Install a package of Python modules into a folder, as `pip install --target` would, without a network."""

import shutil
import tomllib
from pathlib import Path


def install(source: Path, target: Path) -> Path:
    """Copy the modules of source/pyproject.toml to `target` with their metadata; returns target, for PYTHONPATH."""
    content = tomllib.loads((source / "pyproject.toml").read_text())
    project = content["project"]
    target.mkdir(parents=True, exist_ok=True)
    for module in content["tool"]["setuptools"]["py-modules"]:
        shutil.copy(source / f"{module}.py", target)
    name = project["name"].replace("-", "_")
    info = target / f"{name}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8"
    )
    points = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in rows.items())
        for group, rows in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(points))
    return target
