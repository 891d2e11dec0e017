"""A plan is a set of experts bound to one shape of model; anything else is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from moescope.axes import ExpertRef
from moescope.errors import BadInputError
from moescope.intervene.damage.measure import make_plan
from moescope.models import LoadedModel
from moescope.plan import Plan, PlanEntry, PlanModel

ENTRIES = (
    PlanEntry(ExpertRef(3, 9), "largest lift on law", 4.5, "+2.0"),
    PlanEntry(ExpertRef(1, 0), "beside it"),
)


def plan(**changes: Any) -> Plan:
    model: dict[str, Any] = {
        "name": "small", "config_sha256": "abc", "layers": (1, 3), "num_experts": (8, 16),
    }  # fmt: skip
    model |= {n: changes.pop(n) for n in list(changes) if n in model}
    given = {"model": PlanModel(**model), "entries": ENTRIES, "created_by": "a test"}
    return Plan(**{**given, **changes})


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = plan().write(tmp_path / "new" / "plan.json")
    assert Plan.read(path) == plan()
    assert not list(tmp_path.rglob("*.partial"))


def test_experts_are_sorted_by_layer_and_number() -> None:
    assert plan().experts == (ExpertRef(1, 0), ExpertRef(3, 9))


def test_the_file_is_made_to_be_read(tmp_path: Path) -> None:
    data = json.loads(plan().write(tmp_path / "plan.json").read_text())
    assert (data["kind"], data["schema_version"]) == ("plan", 2)
    assert data["model"] == {
        "name": "small", "config_sha256": "abc", "weights_sha256": None, "layers": [1, 3],
        "num_experts": [8, 16],
    }  # fmt: skip
    assert data["experts"] == [
        {"expert": "L1E0", "reason": "beside it", "score": None, "setting": None},
        {"expert": "L3E9", "reason": "largest lift on law", "score": 4.5, "setting": "+2.0"},
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"entries": ()}, "at least one expert"),
        ({"entries": (ENTRIES[0], ENTRIES[0])}, "names L3E9 more than once"),
        (
            {"entries": (PlanEntry(ExpertRef(2, 0), ""),)},
            "layer 2 is not an MoE layer.*are 1, 3",
        ),
        ({"entries": (PlanEntry(ExpertRef(1, 8), ""),)}, "has experts E0 to E7"),
        ({"num_experts": (8,)}, "2 layers but 1 numbers"),
    ],
)
def test_an_impossible_plan_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        plan(**changes)


def described(**changes: Any) -> dict[str, Any]:
    return {
        "name": "small", "config_sha256": "abc", "weights_sha256": "w", "layers": [1, 3],
        "num_experts": [8, 16], **changes,
    }  # fmt: skip


def test_another_model_is_refused_by_its_configuration() -> None:
    with pytest.raises(BadInputError, match=r"made for small \(config abc…\), not for big"):
        plan().require_model(described(name="big", config_sha256="xyz"))


def test_other_weights_are_refused_where_experts_were_chosen_by_them() -> None:
    plan().require_model(described(weights_sha256="others"))
    bound = Plan.of(described(), ENTRIES, "a test", by_weights=True)
    bound.require_model(described())
    with pytest.raises(BadInputError, match=r"made for small \(weights w…\)"):
        bound.require_model(described(weights_sha256="others"))


def test_the_same_configuration_with_other_layers_is_refused() -> None:
    with pytest.raises(BadInputError, match="expects MoE layers"):
        plan().require_model(described(layers=[1], num_experts=[8]))
    plan().require_model(described())


def test_settings_are_what_set_takes() -> None:
    refs = [ExpertRef(1, 0), ExpertRef(1, 2), ExpertRef(3, 1)]
    values = ["+2.0", "mask", "+2.0"]
    made = plan(entries=[PlanEntry(*e) for e in zip(refs, "abc", (1, 2, 3), values, strict=True)])
    assert made.settings() == ["L1E0,L3E1=+2.0", "L1E2=mask"]
    with pytest.raises(BadInputError, match=r"says itself what to do to L1E0 \(\+2.0\)"):
        made.settings("zero")
    with pytest.raises(BadInputError, match="L1E0 and not what to do to it"):
        plan().settings()
    bare = plan(entries=[PlanEntry(r, "") for r in refs])
    assert bare.settings("mask") == ["L1E0,L1E2,L3E1=mask"]


def test_a_plan_of_version_1_is_read(tmp_path: Path) -> None:
    data = json.loads(plan().to_json())
    data |= {"schema_version": 1, "experts": [{"expert": "L1E0", "reason": "why", "score": None}]}
    del data["kind"], data["found_by"], data["model"]["weights_sha256"]
    (tmp_path / "plan.json").write_text(json.dumps(data))
    assert Plan.read(tmp_path / "plan.json").entries == (PlanEntry(ExpertRef(1, 0), "why"),)


def written(folder: Path, **changes: Any) -> Path:
    data = json.loads(plan().to_json())
    for name, value in changes.items():
        if value is None:
            del data[name]
        else:
            data[name] = value
    path = folder / "plan.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema_version": 3}, "schema_version: expected 1 or 2"),
        ({"schema_version": None}, "no plan; make one with moescope contrast"),
        ({"model": None}, "plan's model: missing"),
        ({"experts": "L1E0"}, "plan's experts: expected a list"),
        ({"experts": [{"expert": "first"}]}, "'first' names no expert"),
        (
            {"experts": [{"expert": "L1E0", "score": "high"}]},
            "plan's experts.0.score: expected a number",
        ),
        ({"experts": [{"expert": "L9E0"}]}, "layer 9 is not an MoE layer"),
        ({"experts": ["L1E0"]}, "plan's experts.0: expected"),
        ({"created_by": None}, "plan's created_by: missing"),
        ({"colour": "red"}, "plan's colour: there is no such name"),
    ],
)
def test_a_damaged_file_says_what_is_wrong_and_where(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match=said) as caught:
        Plan.read(written(tmp_path, **changes))
    assert "plan.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_plan_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="cannot be read"):
        Plan.read(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("experts: L1E0")
    with pytest.raises(BadInputError, match=r"text\.json: no JSON"):
        Plan.read(tmp_path / "text.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(BadInputError, match="no plan; make one"):
        Plan.read(tmp_path / "list.json")
    (tmp_path / "old.json").write_text('{"kind": "steering plan", "version": 1}')
    with pytest.raises(BadInputError, match="a plan of an older moescope; make one"):
        Plan.read(tmp_path / "old.json")


def test_a_plan_is_written_over_a_plan_and_over_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInputError, match=r"cannot be made, because .*file is a file"):
        plan().write(tmp_path / "file" / "plan.json")
    with pytest.raises(BadInputError, match="is not a file of this kind that moescope wrote"):
        plan().write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    path = plan().write(tmp_path / "plan.json")
    assert plan().write(path).read_text() == plan().to_json()


def test_a_plan_is_made_from_names_and_fits_its_model(tiny_loaded: LoadedModel) -> None:
    made = make_plan(tiny_loaded, "L1E0-1, L3E7")
    assert [str(e) for e in made.experts] == ["L1E0", "L1E1", "L3E7"]
    assert make_plan(tiny_loaded, made) is made
    with pytest.raises(BadInputError, match="made for small"):
        make_plan(tiny_loaded, plan())
    with pytest.raises(BadInputError, match="L3E8"):
        make_plan(tiny_loaded, "L3E8")
