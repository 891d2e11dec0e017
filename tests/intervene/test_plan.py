"""A plan is a set of experts bound to one shape of model; anything else is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from moescope.axes import ExpertRef
from moescope.errors import BadInputError
from moescope.intervene.damage.measure import make_plan
from moescope.models import LoadedModel
from moescope.plan import BOOST, Plan, PlanEntry, PlanSplit

ENTRIES = (
    PlanEntry(ExpertRef(3, 9), "largest lift on law", 4.5, "+2.0"),
    PlanEntry(ExpertRef(1, 0), "beside it"),
)


def plan(**changes: Any) -> Plan:
    given: dict[str, Any] = {
        "model": "small", "config_sha256": "abc", "layers": (1, 3), "num_experts": (8, 16),
        "entries": ENTRIES, "created_by": "a test",
    }  # fmt: skip
    return Plan(**{**given, **changes})


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = plan().write(tmp_path / "new" / "plan.json")
    assert Plan.read(path) == plan()
    assert not list(tmp_path.rglob("*.partial"))


def test_experts_are_sorted_by_layer_and_number() -> None:
    assert plan().experts == (ExpertRef(1, 0), ExpertRef(3, 9))


def test_the_file_is_made_to_be_read(tmp_path: Path) -> None:
    data = json.loads(plan().write(tmp_path / "plan.json").read_text())
    assert data == {
        "schema_version": 3, "kind": "plan", "model": "small", "config_sha256": "abc",
        "weights_sha256": None, "layers": [1, 3], "num_experts": [8, 16],
        "entries": [
            {"expert": "L1E0", "reason": "beside it", "score": None, "setting": None},
            {"expert": "L3E9", "reason": "largest lift on law", "score": 4.5, "setting": "+2.0"},
        ],
        "created_by": "a test", "split": None, "found_by": {},
    }  # fmt: skip
    split = PlanSplit(seed=7, chose="second")
    assert Plan.read(plan(split=split).write(tmp_path / "plan.json")).split == split


def test_a_half_is_a_matter_of_names_and_seed() -> None:
    keys = [f"doc-{i}" for i in range(11)]
    first = PlanSplit(seed=3).first(keys)
    assert sum(first) == 6  # the larger half of an odd number
    again = PlanSplit(seed=3).first(keys[::-1])[::-1]
    assert again == first
    assert PlanSplit(seed=4).first(keys) != first


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
    plan(layers=(3,), num_experts=(16,), entries=ENTRIES[:1]).require_model(described())


def test_settings_are_what_set_takes() -> None:
    refs = [ExpertRef(1, 0), ExpertRef(1, 2), ExpertRef(3, 1)]
    values = ["+2.0", "mask", "+2.0"]
    made = plan(entries=[PlanEntry(*e) for e in zip(refs, "abc", (1, 2, 3), values, strict=True)])
    assert made.settings() == ["L1E0,L3E1=+2.0", "L1E2=mask"]
    assert made.settings("zero") == ["L1E0,L1E2,L3E1=zero"]
    bare = plan(entries=[PlanEntry(r, "") for r in refs])
    assert bare.settings("mask") == ["L1E0,L1E2,L3E1=mask"]
    assert bare.settings() == ["L1E0,L1E2,L3E1=" + BOOST]


OLD = {
    "kind": "plan", "schema_version": 2, "created_by": "moescope contrast 0.1.0",
    "model": {"name": "small", "config_sha256": "abc", "weights_sha256": "w", "layers": [1, 3],
              "num_experts": [8, 16]},
    "experts": [{"expert": "L1E0", "reason": "why", "score": 0.5, "setting": "+2.0"}],
    "found_by": {"paired": True},
}  # fmt: skip


def test_plans_of_versions_1_and_2_are_read(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(OLD))
    second = Plan.read(tmp_path / "plan.json")
    assert second.entries == (PlanEntry(ExpertRef(1, 0), "why", 0.5, "+2.0"),)
    assert (second.model, second.weights_sha256, second.layers) == ("small", "w", (1, 3))
    assert (second.split, second.found_by) == (None, {"paired": True})
    first = {**OLD, "schema_version": 1, "model": {**OLD["model"]}}
    first["experts"] = [{"expert": "L1E0", "reason": "why", "score": None}]
    del first["kind"], first["found_by"], first["model"]["weights_sha256"]
    (tmp_path / "plan.json").write_text(json.dumps(first))
    assert Plan.read(tmp_path / "plan.json").entries == (PlanEntry(ExpertRef(1, 0), "why"),)
    (tmp_path / "plan.json").write_text(json.dumps({**OLD, "model": "small"}))
    with pytest.raises(BadInputError, match=r"plan's model: expected an object"):
        Plan.read(tmp_path / "plan.json")


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
        ({"schema_version": 4}, "schema_version: expected 3"),
        ({"schema_version": None}, "no plan; make one with moescope select"),
        ({"model": None}, "plan's model: missing"),
        ({"entries": "L1E0"}, "plan's entries: expected a list"),
        ({"entries": [{"expert": "first"}]}, "'first' names no expert"),
        (
            {"entries": [{"expert": "L1E0", "score": "high"}]},
            "plan's entries.0.score: expected a number",
        ),
        ({"entries": [{"expert": "L9E0"}]}, "layer 9 is not an MoE layer"),
        ({"entries": ["L1E0"]}, "plan's entries.0: expected"),
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
