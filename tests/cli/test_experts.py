"""Experts are written in one way, on the command line, in files of settings and in Python."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from moescope.axes import named_experts
from moescope.cli.ablate_cmd import AblateArgs
from moescope.cli.profile_cmd import ProfileArgs
from moescope.cli.verb import resolve
from moescope.errors import BadInputError
from moescope.metrics.runs import AnalyzedRun
from moescope.profiles.options import ProfileOptions
from moescope.profiles.profile import profile_experts

ABLATE = {"model": "m", "corpus": "c", "out": "o"}
WRITTEN = ["L1E2,L3E0-3", "L1E2 L3E0-3", ["L1E2", "L3E0-3"], ["L1E2,L3E0-3"]]


@pytest.mark.parametrize("kind", [AblateArgs, ProfileArgs])
@pytest.mark.parametrize("experts", WRITTEN)
def test_a_file_takes_a_text_or_a_list(kind: Any, experts: Any, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({"experts": experts}))
    given = ABLATE if kind is AblateArgs else {"run": "r"}
    assert resolve(kind, given, file).experts == ("L1E2", "L3E0-3")


def test_selectors_name_each_expert_once_and_in_order() -> None:
    sizes = {1: 4, 3: 2}
    assert [str(e) for e in named_experts(["L3E1", "L1E2-3,L3E1"], sizes, "m")] == [
        "L3E1", "L1E2", "L1E3",
    ]  # fmt: skip
    assert len(named_experts("L1E* L3E*", sizes, "m")) == 6
    for wrong in ("", "L1E3-2", "E3", "L1E4", "L2E0", "L*E2"):
        with pytest.raises(BadInputError):
            named_experts(wrong, sizes, "m")


def test_profiles_take_them_too(tiny_run: AnalyzedRun) -> None:
    options = ProfileOptions(use_model=False, pipeline=None)
    made = profile_experts(tiny_run, ["L1E2,L0E0-1"], options)
    assert [str(one.expert) for one in made] == ["L1E2", "L0E0", "L0E1"]
