"""Write docs/reference from the code: command line, recipe, tables, run format, Python, and more.

    python tools/build_reference.py            # write the pages
    python tools/build_reference.py --check    # say which pages are stale; exit 1 if any is

Nothing here is measured: pages hold names, types and docstrings only, so they are the same on
every machine. Tables and the run format are read off a run of a tiny random model, the
architectures off tiny random models of every type, all built in memory or a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
sys.path.insert(0, str(ROOT))
for _name, _value in {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}.items():
    os.environ.setdefault(_name, _value)

from tools.reference.architectures import architectures_page  # noqa: E402
from tools.reference.command_line import cli_page, commands  # noqa: E402
from tools.reference.python_names import python_page  # noqa: E402
from tools.reference.recipe import recipe_page  # noqa: E402
from tools.reference.runs import run_format_page, tables_page  # noqa: E402

__all__ = ["PAGES", "commands", "stale"]

PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli_page,
    "recipe.md": recipe_page,
    "tables.md": tables_page,
    "architectures.md": architectures_page,
    "run-format.md": run_format_page,
    "python.md": python_page,
}
"""File name → the function that writes its text."""


def stale(names: Iterable[str] = tuple(PAGES)) -> list[str]:
    """Names of the pages whose text on disk is not what the code gives now."""
    return [name for name in names if _on_disk(name) != PAGES[name]()]


def _on_disk(name: str) -> str:
    path = REFERENCE / name
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/reference from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if stale")
    parser.add_argument("pages", nargs="*", help=f"some of {', '.join(PAGES)}; default: all")
    given = parser.parse_args()
    unknown = set(given.pages) - set(PAGES)
    if unknown:
        parser.error(f"no page {sorted(unknown)}; there are {', '.join(PAGES)}")
    names = given.pages or list(PAGES)
    if given.check:
        old = stale(names)
        for name in old:
            print(f"docs/reference/{name} is stale; run: python tools/build_reference.py")
        return int(bool(old))
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name in names:
        (REFERENCE / name).write_text(PAGES[name](), encoding="utf-8")
        print(f"docs/reference/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
