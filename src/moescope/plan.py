"""A plan: which experts, why, and what to do to them; bound to the model that they belong to.

What chooses experts writes one (`moescope select`, `contrast`, `ablate`, a person), what ablates or
steers them reads it. It is JSON, made to be read and edited by hand.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from moescope.axes import ExpertRef, require_experts
from moescope.errors import BadInputError
from moescope.files import usable_path, write_bytes
from moescope.given import first_problem, parse_json, read_text
from moescope.words import counted

PLAN_SCHEMA: Literal[3] = 3
"""Version of the JSON that `Plan.write` makes; 1 (without settings) and 2 are read too."""

PLAN_SIGNATURE = b'"kind": "plan"'


def _expert(given: Any) -> Any:
    return ExpertRef.parse(given) if isinstance(given, str) else given


_Expert = Annotated[ExpertRef, BeforeValidator(_expert), PlainSerializer(str)]
_Score = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Whole = Annotated[int, Field(ge=0, strict=True)]


BOOST = "+2.0"
"""What steering does to an expert of which neither the plan nor the person says anything."""


class PlanEntry(NamedTuple):
    """One expert of a plan, why it was chosen, the score that spoke for it, and what to do to it.

    ``setting`` is what stands after the ``=`` of ``moescope steer --set``: ``+2.0``, ``x0.5``,
    ``mask``. None leaves it to the reader of the plan.
    """

    expert: _Expert
    reason: str | None = None
    score: _Score | None = None
    setting: str | None = None


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class PlanSplit(_Closed):
    """How the documents were halved: one half chose the experts, the other tested them.

    Attributes:
        seed: of the halves.
        share: of the documents that are in the first half.
        chose: which half chose.
    """

    seed: int
    share: float = 0.5
    chose: Literal["first", "second"] = "first"

    def first(self, keys: Sequence[str]) -> list[bool]:
        """The documents of the first half: those whose keys hash lowest; the larger of two.

        Args:
            keys: names of the documents of one group, such as a domain.
        """
        texts = [f"{self.seed}\0half\0{key}".encode() for key in keys]
        digests = [hashlib.blake2b(text, digest_size=8).digest() for text in texts]
        order = sorted(range(len(keys)), key=lambda i: (digests[i], i))
        half = set(order[: (len(keys) + 1) // 2])
        return [i in half for i in range(len(keys))]


class Plan(_Closed):
    """A set of experts, bound to one shape of model.

    Attributes:
        model: what the model is called; its hashes decide.
        config_sha256: of the model that the experts belong to.
        weights_sha256: given where experts were chosen by what these weights do; None takes any of
            this configuration.
        layers: the numbers of its MoE layers, or of those that were looked at.
        num_experts: of each of them.
        entries: the experts, sorted; each once, at least one.
        created_by: what wrote the plan, with its version.
        split: how the documents were halved; None where they were not.
        found_by: how the experts were found, for people.

    Raises:
        BadInputError: no expert, one named twice, or one that the model does not have.
    """

    schema_version: Literal[3] = PLAN_SCHEMA
    kind: Literal["plan"] = "plan"
    model: str
    config_sha256: str
    weights_sha256: str | None = None
    layers: tuple[_Whole, ...]
    num_experts: tuple[_Whole, ...]
    entries: tuple[PlanEntry, ...]
    created_by: str
    split: PlanSplit | None = None
    found_by: dict[str, Any] = {}

    @field_validator("entries")
    @classmethod
    def _sorted(cls, entries: tuple[PlanEntry, ...]) -> tuple[PlanEntry, ...]:
        return tuple(sorted(entries, key=lambda e: e.expert))

    @model_validator(mode="after")
    def _belongs_together(self) -> Plan:
        if not self.entries:
            raise BadInputError("a plan needs at least one expert, got none")
        twice = [e for e, n in Counter(self.experts).items() if n > 1]
        if twice:
            raise BadInputError(f"the plan names {twice[0]} more than once; name each expert once")
        layers, sizes = self.layers, self.num_experts
        if len(layers) != len(sizes):
            raise BadInputError(
                f"the plan lists {counted(len(layers), 'layer')} but {len(sizes)} numbers of "
                "experts; each layer has one"
            )
        require_experts(self.experts, dict(zip(layers, sizes, strict=True)), self.model)
        return self

    @classmethod
    def of(
        cls,
        model: Mapping[str, Any],
        entries: Iterable[PlanEntry],
        created_by: str,
        *,
        by_weights: bool = False,
        split: PlanSplit | None = None,
        found_by: Mapping[str, Any] | None = None,
    ) -> Plan:
        """A plan for a model.

        Args:
            model: as `moescope.measure.identity.describe_model` or the manifest of a run describes
                it.
            entries: the experts.
            created_by: what makes the plan.
            by_weights: the experts were chosen by what these weights do.
            split: how the documents were halved.
            found_by: how.

        Raises:
            BadInputError: see `Plan`.
        """
        return cls.from_dict(
            {
                "schema_version": PLAN_SCHEMA,
                "model": model["name"],
                "config_sha256": model["config_sha256"],
                "weights_sha256": model["weights_sha256"] if by_weights else None,
                "layers": model["layers"],
                "num_experts": model["num_experts"],
                "entries": list(entries),
                "created_by": created_by,
                "split": split,
                "found_by": dict(found_by or {}),
            }
        )

    @property
    def experts(self) -> tuple[ExpertRef, ...]:
        """The experts, sorted by layer and number."""
        return tuple(entry.expert for entry in self.entries)

    def settings(self, value: str | None = None) -> list[str]:
        """What ``moescope steer --set`` takes: experts with the same setting together.

        Args:
            value: for all experts, whatever the plan says; by default what it says, and
                `BOOST` for an expert of which it says nothing.
        """
        named: dict[str, list[str]] = {}
        for entry in self.entries:
            named.setdefault(value or entry.setting or BOOST, []).append(str(entry.expert))
        return [f"{','.join(experts)}={setting}" for setting, experts in named.items()]

    def require_model(self, model: Mapping[str, Any]) -> None:
        """Refuse a model that the plan was not made for: expert numbers mean nothing elsewhere.

        Args:
            model: as for `of`; its ``weights_sha256`` may be None while they are not read.

        Raises:
            BadInputError: another configuration, other weights where the plan is bound to them, or
                another shape under the same configuration.
        """
        for what in ("config", "weights"):
            mine, theirs = getattr(self, f"{what}_sha256"), model[f"{what}_sha256"]
            if None not in (mine, theirs) and mine != theirs:
                raise BadInputError(
                    f"the plan was made for {self.model} ({what} {mine[:12]}…), not for "
                    f"{model['name']} ({what} {theirs[:12]}…); give the plan's model, or make a "
                    "plan for this one"
                )
        own, there = (
            dict(zip(*pair, strict=True))
            for pair in ((self.layers, self.num_experts), (model["layers"], model["num_experts"]))
        )
        if not own.items() <= there.items():
            raise BadInputError(
                f"the plan expects MoE layers {list(own)} of {list(own.values())} experts, but "
                f"{model['name']} has {list(there)} of {list(there.values())}; make a new plan"
            )

    def write(self, path: str | Path) -> Path:
        """Write the plan as JSON, whole or not at all; returns the path.

        Raises:
            BadInputError: a file is there that is not a plan.
            WriteError: disk full or no permission.
        """
        target = usable_path(path)
        write_bytes(target, self.to_json().encode(), PLAN_SIGNATURE)
        return target

    def to_json(self) -> str:
        """The text of the file."""
        entries = [{**e._asdict(), "expert": str(e.expert)} for e in self.entries]
        data = {**self.model_dump(), "entries": entries}
        text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
        # a list of numbers is one line; no string holds a newline
        return re.sub(r"\[\n([\d,\s]+)\]", lambda m: f"[{' '.join(m[1].split())}]", text)

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
            raise BadInputError(f"{made}; make one with moescope select or contrast")
        try:
            return cls.model_validate(_flat(data) if data["schema_version"] in (1, 2) else data)
        except ValidationError as error:
            raise BadInputError(f"the plan's {first_problem(error)}") from error


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    """A plan of version 1 or 2, whose model was an object and whose entries were ``experts``."""
    model, entries = data.get("model"), data.get("experts")
    if not isinstance(model, dict):
        raise BadInputError("the plan's model: expected an object in a plan of version 1 or 2")
    rest = {n: v for n, v in data.items() if n not in ("experts", "schema_version")}
    sizes = {n: v for n, v in model.items() if n != "name"}
    return {**rest, **sizes, "model": model.get("name"), "entries": entries}
