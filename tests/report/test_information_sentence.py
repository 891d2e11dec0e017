"""What the report says of domain and token, on routers that know one, the other, or two tokens."""

import re

import numpy as np
import pytest

from moescope.metrics.information import SampledText, layer_information, previous_tokens
from moescope.report.frames import Frame
from moescope.report.summary import meaning

EXPERTS, TOP_K, WORDS = 8, 2, 20


def table(kind: str, documents: int = 40) -> Frame:
    """The information table of four layers whose routers go by ``kind``, with noise."""
    rng = np.random.default_rng(3)
    odds = np.stack([np.linspace(1, 8, WORDS), np.linspace(8, 1, WORDS)])
    odds /= odds.sum(1, keepdims=True)
    domain_N = np.arange(documents) % 2
    token = np.concatenate([rng.choice(WORDS, 100, p=odds[d]) for d in domain_N])
    doc, domain = np.repeat(np.arange(documents), 100), np.repeat(domain_N, 100)
    previous = previous_tokens(token, doc, np.zeros_like(doc), np.arange(token.size))
    text = SampledText(token, domain, doc, previous)
    own = {
        "token": token,
        "two tokens": token * (WORDS + 1) + previous + 1,
        "token and domain": token * 2 + domain,
    }[kind]
    rows = []
    for _ in range(4):
        sets = np.argsort(rng.random((own.max() + 1, EXPERTS)), axis=1)[:, :TOP_K]
        other = np.argsort(rng.random((own.size, EXPERTS)), axis=1)[:, :TOP_K]
        ids = np.where(rng.random((own.size, 1)) < 0.2, other, sets[own])
        rows.append(layer_information(ids, text, EXPERTS, shuffles=3))
    columns = {"shared_pairs": np.full(4, text.shared_pairs)}
    for name in rows[0]._fields[:4]:
        for part, said in (("corrected", "bits"), ("raw", "raw"), ("p", "p")):
            values = [getattr(getattr(row, name), part) for row in rows]
            columns[f"i_{name}_{said}"] = np.asarray(values)
    return Frame(columns | {"max_bits": np.asarray([row.max_bits for row in rows])})


def test_a_router_of_tokens_is_not_called_one_of_domains() -> None:
    assert "nothing here shows" in meaning(table("token"))


def test_a_router_of_two_neighbouring_tokens_is_not_called_one_of_domains() -> None:
    said = meaning(table("two tokens"))
    assert "may be the neighbouring token that the experts follow, and not the domain" in said


def test_a_router_of_the_domain_is_seen_beyond_both() -> None:
    assert "neither the current token nor it and the one before" in meaning(
        table("token and domain")
    )


def test_too_few_documents_are_said_to_be_no_test() -> None:
    assert "was not tested" in meaning(table("token and domain", documents=6))


@pytest.mark.parametrize("kind", ["token", "two tokens", "token and domain"])
def test_one_quantity_is_never_called_a_share_of_another(kind: str) -> None:
    """I(E;D|X) is no part of I(E;D), and X is the current token only."""
    assert not re.search(r"\b(part|much|most|its words)\b", meaning(table(kind)))
