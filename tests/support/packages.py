"""A small package as pip would install it: a module, and the folder that says what it provides."""

import tomllib
from pathlib import Path
from textwrap import dedent

GROUP = "moescope.tables"


def install(
    site: Path, module: str, code: str, *, version: str = "0.1", entry: str | None = None
) -> None:
    """Put a package into a folder of ``sys.path``.

    Args:
        site: the folder.
        module: its name, which is the package's too.
        code: of the module.
        version: of the package.
        entry: what its entry point of the group ``moescope.tables`` names; by default the module.
    """
    site.mkdir(exist_ok=True)
    (site / f"{module}.py").write_text(dedent(code))
    register(site, module, version, {"own": entry or module})


def install_project(folder: Path) -> None:
    """What ``pip install -e .`` does in a folder of ``sys.path``, without the network."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    register(folder, project["name"], project["version"], project["entry-points"][GROUP])


def register(site: Path, name: str, version: str, points: dict[str, str]) -> None:
    """Say in a folder of ``sys.path`` that a package is installed there."""
    for old in site.glob(f"{name}-*.dist-info/*"):
        old.unlink()
    about = site / f"{name}-{version}.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"[{GROUP}]", *(f"{key} = {value}" for key, value in points.items())]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
