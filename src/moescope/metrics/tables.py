"""The registry of tables: each has a name, a function that makes it, and a description."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from moescope.metrics import expert_tables, token_tables
from moescope.metrics.view import PhaseView, Rows

__all__ = ["TABLES", "TableSpec"]


class TableSpec(NamedTuple):
    """A table: its name, the function that makes it, and the function's docstring.

    ``needs``: a key of `moescope.run.aggregates.ABSENT` without which there is nothing to say; a
    run that does not know it refuses the table.
    """

    name: str
    make: Callable[[PhaseView], Rows]
    needs: str | None = None

    @property
    def description(self) -> str:
        """What the table says and what its columns mean."""
        return " ".join((self.make.__doc__ or "").split())

    @property
    def title(self) -> str:
        """The first line of the description."""
        return (self.make.__doc__ or "").strip().splitlines()[0]


TABLES: dict[str, TableSpec] = {
    spec.name: spec
    for spec in (
        TableSpec("load", expert_tables.load),
        TableSpec("balance", expert_tables.balance_table),
        TableSpec("decisiveness", expert_tables.decisiveness, "weights"),
        TableSpec("histograms", expert_tables.histograms, "weights"),
        TableSpec("coactivation", expert_tables.coactivation, "tokens"),
        TableSpec("flow", expert_tables.flow, "tokens"),
        TableSpec("domain_specialization", expert_tables.domain_specialization),
        TableSpec("domain_distance", expert_tables.domain_distance),
        TableSpec("domain_loss", token_tables.domain_loss),
        TableSpec("vocabulary_specialization", token_tables.vocabulary_specialization, "tokens"),
        TableSpec("expert_tokens", token_tables.expert_tokens, "tokens"),
        TableSpec("token_overlap", token_tables.token_overlap, "tokens"),
        TableSpec("information", token_tables.information, "tokens"),
        TableSpec("repetition", token_tables.repetition, "tokens"),
        TableSpec("committee", expert_tables.committee_table, "weights"),
        TableSpec("paths", token_tables.paths, "weights"),
        TableSpec("path_entropy", token_tables.path_entropy, "order"),
    )
}
"""Every table that is made from a run by itself; ``phases`` is made from these."""
