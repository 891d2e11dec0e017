"""The first session of the documentation is what it says."""

import re
from pathlib import Path

import pytest

from moescope import open_run

PAGE = Path(__file__).parents[1] / "docs/how-to/notebook.md"


def test_the_session_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["profile"].summary.startswith("L3E7")  # type: ignore[attr-defined]
    assert open_run("list-run").domains == ["ndis", "talk"]
    assert (tmp_path / "my-run" / "report.html").is_file()
