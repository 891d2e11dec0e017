"""Draw the growth curves of benchmarks/engine_speed.json as docs/images/growth.svg.

python tools/growth_figure.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.experiment_figures import require_matplotlib  # noqa: E402

TITLES = {"tokens": "tokens", "experts": "experts a layer", "layers": "MoE layers"}
SPENT = "tokens, budget spent"


def draw(points: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Seconds above, peak memory below; one column for each thing that grows."""
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "path", "svg.hashsalt": "moescope", "font.size": 9}
    with mpl.rc_context(style):
        canvas = Figure(figsize=(8.4, 4.2), layout="constrained")
        axes = canvas.subplots(2, len(TITLES), sharex="col")
        for column, (axis, title) in enumerate(TITLES.items()):
            above, below = axes[0][column], axes[1][column]
            _line(above, below, points[axis], axis, "o-")
            if axis == "tokens":
                _line(above, below, points[SPENT], axis, "s--")
                below.legend(
                    below.lines,
                    ["token ids of 250,000 tokens a domain", "of 1,000 tokens a domain"],
                    frameon=False,
                    fontsize=7,
                )
            below.set_xlabel(title)
            for one in (above, below):
                highest = max(y for line in one.lines for y in line.get_ydata())
                one.set_ylim(0, 1.1 * highest)
                one.set_xlim(left=0)
                one.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
                one.spines[["top", "right"]].set_visible(False)
                one.grid(alpha=0.3)
        axes[0][0].set_ylabel("seconds")
        axes[1][0].set_ylabel("peak memory, GB")
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _line(above: Any, below: Any, rows: list[dict[str, Any]], axis: str, style: str) -> None:
    across = [r["counted"] if axis == "tokens" else r[axis] for r in rows]
    above.plot(across, [r["seconds"] for r in rows], style, ms=4, color="#0b5e8e")
    below.plot(across, [r["peak_rss_bytes"] / 1e9 for r in rows], style, ms=4, color="#c4540b")


if __name__ == "__main__":
    kept = json.loads((ROOT / "benchmarks" / "engine_speed.json").read_text(encoding="utf-8"))
    draw(kept["results"]["growth"]["aggregates"], ROOT / "docs" / "images" / "growth.svg")
