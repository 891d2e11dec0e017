"""What is known of a model before its weights are read, and that this comes before."""

from pathlib import Path
from typing import Any

import pytest

from moescope.errors import BadInputError
from moescope.models import ModelSpec, load_model, loading, open_model
from moescope.models.outline import Outline
from moescope.plan import Plan, PlanEntry


def outline(weight_bytes: int, streamed: bool = False) -> Outline:
    anatomy: Any = None
    return Outline("m", anatomy, None, weight_bytes, streamed)


def test_what_is_large_says_what_it_takes() -> None:
    assert outline(10_000_000).memory_note == ""
    assert outline(13_840_000_000).memory_note.startswith("m: 13.84 GB of weights, ")
    assert outline(13_840_000_000).memory_note.endswith("of memory are free")
    assert outline(13_840_000_000, True).memory_note.endswith("read from disk layer by layer")


@pytest.mark.parametrize("engine", ["resident", "streamed"])
def test_a_check_ends_the_loading_before_weights_are_read(
    engine: Any, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "checkpoint_folder", pytest.fail)
    seen = []

    def refuse(known: Outline) -> None:
        seen.append(known)
        raise BadInputError("no")

    with pytest.raises(BadInputError, match="no"):
        open_model(ModelSpec(str(tiny_folder)), engine=engine, check=refuse)
    [known] = seen
    assert known.streamed == (engine == "streamed")
    assert known.weight_bytes == 4 * known.anatomy.total_params


def test_a_plan_is_held_to_what_is_known_by_then(tiny_folder: Path) -> None:
    seen: list[Outline] = []
    load_model(ModelSpec(str(tiny_folder)), check=seen.append)
    shape = seen[0].describe()
    plan = Plan.of({**shape, "weights_sha256": "0" * 64}, [PlanEntry("L1E3")], "x", by_weights=True)  # type: ignore[arg-type]
    plan.require_model(shape)  # its weights are not known yet
    with pytest.raises(BadInputError, match="the plan was made for"):
        plan.require_model({**shape, "config_sha256": "1" * 64})
    with pytest.raises(BadInputError, match="the plan was made for"):
        plan.require_model({**shape, "weights_sha256": "1" * 64})
