"""The page of profiles, to browse every expert or to read one; see `moescope.report.page`."""

from __future__ import annotations

from pathlib import Path

from moescope.metrics.runs import AnalyzedRun
from moescope.profiles.facts import Profiles
from moescope.profiles.stored import FOLDER
from moescope.report.page import fill_page, write_page
from moescope.report.profile_data import RULES, profiles_data
from moescope.words import counted

_SCRIPTS = (
    "heatmap.js", "profiles_inflate.js", "profiles_data.js", "profiles_map.js", "profiles_list.js",
    "profiles_parts.js", "profiles_text.js", "profiles_panel.js",
)  # fmt: skip


def build_profile_page(
    run: AnalyzedRun, profiles: Profiles, path: str | Path | None = None
) -> Path:
    """Write the page of all experts, or of one.

    Args:
        run: the run.
        profiles: those of every expert, by layer and number, or a single one.
        path: where to; ``RUN/profiles/index.html`` by default, ``L5E9.html`` for a single one.

    Returns:
        The path. The same profiles give the same bytes.

    Raises:
        ValueError: several profiles, but not one for each expert of the run.
        WriteError: disk full or no permission.
    """
    name = "index.html" if len(profiles) != 1 else f"{profiles[0].expert}.html"
    page = render_profile_page(run, profiles)
    if path is not None:
        return write_page(path, page)
    with run.writing() as folder:
        return write_page(folder / FOLDER / name, page)


def render_profile_page(run: AnalyzedRun, profiles: Profiles) -> str:
    """The text of the page; see `build_profile_page`."""
    total = sum(run.shape.num_experts)
    if len(profiles) not in (1, total):
        raise ValueError(
            f"the page shows one expert or all {total} of the run, got "
            f"{counted(len(profiles), 'profile')}"
        )
    data = profiles_data(run, profiles)
    alerts = data.pop("alerts")
    if data["cut"]:
        alerts.append({"level": "note", "text": data["cut"]})
    return fill_page(
        "profiles.html.j2",
        _SCRIPTS,
        data,
        title=data["about"]["model"]["name"],
        alerts=alerts,
        style="profiles.css",
        sentences=data.pop("short"),
        single=profiles.column("name")[0] if len(profiles) == 1 else "",
        rules=RULES,
    )
