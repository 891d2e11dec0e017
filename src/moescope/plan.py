"""A plan: which experts, why, and what to do to them; bound to the model that they belong to.

What chooses experts writes one (`moescope contrast`, a person), what ablates, steers or tunes them
reads it. It is JSON, made to be read and edited by hand.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moescope.axes import ExpertRef, require_experts
from moescope.errors import BadInputError
from moescope.files import usable_path, write_bytes
from moescope.given import first_problem, parse_json, read_text

__all__ = ["PLAN_SCHEMA", "PLAN_SIGNATURE", "Plan", "PlanEntry"]

PLAN_SCHEMA = 2
"""Version of the JSON that `Plan.write` makes; version 1, without settings, is read too."""

PLAN_SIGNATURE = b'"kind": "plan"'


class PlanEntry(NamedTuple):
    """One expert of a plan, why it was chosen, the score that spoke for it, and what to do to it.

    ``setting`` is what stands after the ``=`` of ``moescope steer --set``: ``+2.0``, ``x0.5``,
    ``mask``. None leaves it to the reader of the plan.
    """

    expert: ExpertRef
    reason: str
    score: float | None = None
    setting: str | None = None


@dataclass(frozen=True)
class Plan:
    """A set of experts, bound to one shape of model.

    Attributes:
        model: name of the model, for people.
        config_sha256: hash of its configuration; another model's plan is refused by it.
        layers: numbers of the model's MoE layers.
        num_experts: E of each of them.
        entries: the experts, sorted; each once, at least one.
        created_by: what wrote the plan, with its version.
        weights_sha256: hash of its weights, where experts were chosen by what these weights do;
            None: any of this configuration.
        found_by: how they were found, for people.

    Raises:
        BadInputError: no expert, one named twice, or one that the model does not have.
    """

    model: str
    config_sha256: str
    layers: tuple[int, ...]
    num_experts: tuple[int, ...]
    entries: tuple[PlanEntry, ...]
    created_by: str
    weights_sha256: str | None = None
    found_by: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", tuple(sorted(self.entries, key=lambda e: e.expert)))
        if not self.entries:
            raise BadInputError("a plan needs at least one expert, got none")
        twice = [e for e, n in Counter(x.expert for x in self.entries).items() if n > 1]
        if twice:
            raise BadInputError(f"the plan names {twice[0]} more than once; name each expert once")
        if len(self.layers) != len(self.num_experts):
            raise BadInputError(
                f"the plan lists {len(self.layers)} layers but {len(self.num_experts)} numbers of "
                "experts; each layer has one"
            )
        odd = [e for e in self.entries if e.score is not None and not math.isfinite(e.score)]
        if odd:
            raise BadInputError(f"the score of {odd[0].expert} is {odd[0].score}; leave it out")
        sizes = dict(zip(self.layers, self.num_experts, strict=True))
        require_experts(self.experts, sizes, self.model)

    @classmethod
    def of(
        cls,
        model: Mapping[str, Any],
        entries: Iterable[PlanEntry],
        created_by: str,
        *,
        by_weights: bool = False,
        found_by: Mapping[str, Any] | None = None,
    ) -> Plan:
        """A plan for a model.

        Args:
            model: as `moescope.measure.identity.describe_model` describes it.
            entries: the experts.
            created_by: what makes the plan.
            by_weights: the experts were chosen by what these weights do.
            found_by: how.

        Raises:
            BadInputError: see `Plan`.
        """
        return cls(
            model=model["name"],
            config_sha256=model["config_sha256"],
            layers=tuple(model["layers"]),
            num_experts=tuple(model["num_experts"]),
            entries=tuple(entries),
            created_by=created_by,
            weights_sha256=model["weights_sha256"] if by_weights else None,
            found_by=found_by or {},
        )

    @property
    def experts(self) -> tuple[ExpertRef, ...]:
        """The experts, sorted by layer and number."""
        return tuple(entry.expert for entry in self.entries)

    def settings(self, value: str | None = None) -> list[str]:
        """What ``moescope steer --set`` takes: experts with the same setting together.

        Args:
            value: for all experts of a plan without settings, such as ``mask``.

        Raises:
            BadInputError: an expert without a setting and no value, or both.
        """
        named: dict[str, list[str]] = {}
        for entry in self.entries:
            if value is not None and entry.setting is not None:
                raise BadInputError(
                    f"the plan says itself what to do to {entry.expert} ({entry.setting}), so "
                    f"{value} has no place; leave it out"
                )
            setting = value if entry.setting is None else entry.setting
            if setting is None:
                raise BadInputError(
                    f"the plan names {entry.expert} and not what to do to it; say it, such as +2.0 "
                    "or mask"
                )
            named.setdefault(setting, []).append(str(entry.expert))
        return [f"{','.join(experts)}={setting}" for setting, experts in named.items()]

    def require_model(self, model: Mapping[str, Any]) -> None:
        """Refuse a model that the plan was not made for: expert numbers mean nothing elsewhere.

        Args:
            model: as for `of`.

        Raises:
            BadInputError: another configuration, other weights where the plan is bound to them, or
                another shape under the same configuration.
        """
        for what in ("config", "weights"):
            mine, theirs = getattr(self, f"{what}_sha256"), model[f"{what}_sha256"]
            if mine is not None and mine != theirs:
                raise BadInputError(
                    f"the plan was made for {self.model} ({what} {mine[:12]}…), not for "
                    f"{model['name']} ({what} {theirs[:12]}…); give the plan's model, or make a "
                    "plan for this one"
                )
        shape = list(model["layers"]), list(model["num_experts"])
        if (list(self.layers), list(self.num_experts)) != shape:
            raise BadInputError(
                f"the plan expects MoE layers {list(self.layers)} of {list(self.num_experts)} "
                f"experts, but {model['name']} has {shape[0]} of {shape[1]}; make a new plan"
            )

    def write(self, path: str | Path) -> Path:
        """Write the plan as JSON, whole or not at all; returns the path.

        Raises:
            BadInputError: a file is there that is no plan.
            WriteError: disk full or no permission.
        """
        target = usable_path(path)
        write_bytes(target, self.to_json().encode(), PLAN_SIGNATURE)
        return target

    def to_json(self) -> str:
        """The text of the file."""
        data = {
            "kind": "plan",
            "schema_version": PLAN_SCHEMA,
            "model": {
                "name": self.model,
                "config_sha256": self.config_sha256,
                "weights_sha256": self.weights_sha256,
                "layers": self.layers,
                "num_experts": self.num_experts,
            },
            "created_by": self.created_by,
            "found_by": self.found_by,
            "experts": [{**e._asdict(), "expert": str(e.expert)} for e in self.entries],
        }
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Read a plan from a file.

        Raises:
            BadInputError: no such file, no JSON, another kind or schema version, a missing or
                impossible field, an expert that the plan's model does not have.
        """
        source = Path(path)
        text = read_text(source)
        try:
            return cls.from_dict(parse_json(text))
        except BadInputError as error:
            raise BadInputError(f"{source}: {error}") from error

    @classmethod
    def from_dict(cls, data: Any) -> Plan:
        """A plan from what its JSON holds.

        Raises:
            BadInputError: see `read`.
        """
        if not isinstance(data, dict) or "schema_version" not in data:
            older = isinstance(data, dict) and data.get("kind") == "steering plan"
            made = "a plan of an older moescope" if older else "no plan"
            raise BadInputError(f"{made}; make one with moescope contrast MODEL … -o FOLDER")
        try:
            stored = _Stored.model_validate(data)
        except ValidationError as error:
            raise BadInputError(f"the plan's {first_problem(error)}") from error
        entries = (
            PlanEntry(ExpertRef.parse(e.expert), e.reason or "", e.score, e.setting)
            for e in stored.experts
        )
        known = stored.model
        return cls(
            model=known.name,
            config_sha256=known.config_sha256,
            layers=tuple(known.layers),
            num_experts=tuple(known.num_experts),
            entries=tuple(entries),
            created_by=stored.created_by,
            weights_sha256=known.weights_sha256,
            found_by=stored.found_by,
        )


_Whole = Annotated[int, Field(ge=0, strict=True)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class _Model(_Closed):
    name: str
    config_sha256: str
    weights_sha256: str | None = None
    layers: list[_Whole]
    num_experts: list[_Whole]


class _Entry(_Closed):
    expert: str
    reason: str | None = None
    score: float | None = Field(None, strict=True)
    setting: str | None = None


class _Stored(_Closed):
    kind: Literal["plan"] = "plan"
    schema_version: Literal[1, 2]
    model: _Model
    created_by: str
    found_by: dict[str, Any] = {}
    experts: list[_Entry]
