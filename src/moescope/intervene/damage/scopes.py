"""Sums over windows to sums over documents, and the groups of documents that figures are given for.

The document is the unit of every interval, so all windows of a document become one. Groups: all
documents, those of the target domains and the others where targets are named, and each domain.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from moescope.errors import BadInputError
from moescope.measure.windows import TextWindow

Scope = Literal["all", "on-target", "off-target", "domain"]
Number = TypeVar("Number", np.float64, np.int64)


class Group(NamedTuple):
    """Some documents: their scope, the name shown for them, and which they are, (N,)."""

    scope: Scope
    domain: str
    mask: NDArray[np.bool_]


class Scopes:
    """The documents behind windows.

    Args:
        windows: the text.
        targets: names of the target domains; none for a measurement without a target.

    Attributes:
        domains: names, in the order of the windows.
        domain_of: domain of each of the N documents.
        targets: as given.

    Raises:
        BadInputError: a target that the text does not have, or targets that are all of its domains.
    """

    def __init__(self, windows: Sequence[TextWindow], targets: Sequence[str] = ()) -> None:
        self.domains = list(dict.fromkeys(w.domain for w in windows))
        documents = {k: i for i, k in enumerate(dict.fromkeys((w.domain, w.doc) for w in windows))}
        place = {name: i for i, name in enumerate(self.domains)}
        self.domain_of = np.asarray([place[domain] for domain, _ in documents], np.int64)
        self._document = np.asarray([documents[(w.domain, w.doc)] for w in windows], np.int64)
        self.targets = tuple(dict.fromkeys(targets))
        self._require_targets()

    def _require_targets(self) -> None:
        for name in self.targets:
            if name not in self.domains:
                near = difflib.get_close_matches(name, self.domains, n=1)
                hint = f" (did you mean {near[0]}?)" if near else ""
                raise BadInputError(
                    f"the text has no domain {name!r}{hint}; its domains are "
                    f"{', '.join(self.domains)}"
                )
        if self.targets and len(self.targets) == len(self.domains):
            raise BadInputError(
                "every domain of the text is a target, so nothing is off target; name fewer with "
                "`target`, or give text of other domains too"
            )

    @property
    def num_documents(self) -> int:
        """N."""
        return int(self.domain_of.size)

    @property
    def on_target(self) -> NDArray[np.bool_]:
        """Which documents are of a target domain, (N,)."""
        return np.isin(self.domain_of, [self.domains.index(t) for t in self.targets])

    def windows_on_target(self) -> NDArray[np.bool_]:
        """Which windows are of a target domain, (W,)."""
        mask: NDArray[np.bool_] = self.on_target[self._document]
        return mask

    def add_up(self, values_W: NDArray[Number]) -> NDArray[Number]:
        """Sums by document (N, …) of sums by window (W, …)."""
        out = np.zeros((self.num_documents, *values_W.shape[1:]), values_W.dtype)
        np.add.at(out, self._document, values_W)
        return out

    def groups(self) -> Iterator[Group]:
        """All, on and off target, and every domain; one domain alone is ``all``."""
        yield Group("all", "all", np.ones(self.num_documents, np.bool_))
        if self.targets:
            yield Group("on-target", " + ".join(self.targets), self.on_target)
            yield Group("off-target", "all others", ~self.on_target)
        if len(self.domains) > 1:
            for d, name in enumerate(self.domains):
                yield Group("domain", name, self.domain_of == d)

    def describe(self, tokens_W: NDArray[np.int64]) -> dict[str, object]:
        """The text in numbers: scored tokens, documents, and both by domain."""
        tokens_N = self.add_up(tokens_W)
        return {
            "tokens": int(tokens_N.sum()),
            "documents": int((tokens_N > 0).sum()),
            "windows": int(tokens_W.size),
            "domains": [
                {
                    "name": name,
                    "tokens": int(tokens_N[self.domain_of == d].sum()),
                    "documents": int((tokens_N[self.domain_of == d] > 0).sum()),
                }
                for d, name in enumerate(self.domains)
            ],
        }
