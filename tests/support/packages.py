"""A small package as pip would install it: a module, and the folder that says what it provides."""

from pathlib import Path
from textwrap import dedent


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
    for old in site.glob(f"{module}-*.dist-info/*"):
        old.unlink()
    about = site / f"{module}-{version}.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n")
    (about / "entry_points.txt").write_text(f"[moescope.tables]\nown = {entry or module}\n")
