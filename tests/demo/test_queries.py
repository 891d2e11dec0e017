"""The shipped query set is balanced: domains differ neither in who asks nor in length."""

import json
from collections import Counter
from itertools import product
from statistics import median

from moescope.demo import QUERIES

DOMAINS = ("ndis_policy", "ndis_legal", "support_coordination", "everyday")
ASKERS = ("participant", "carer", "provider", "coordinator", "other")
ROWS = [json.loads(line) for line in QUERIES.read_text("utf-8").splitlines()]


def median_words(**wanted: str) -> float:
    chosen = [row for row in ROWS if all(row[key] == value for key, value in wanted.items())]
    return median(len(row["text"].split()) for row in chosen)


def test_every_asker_asks_fifteen_questions_in_every_domain() -> None:
    counts = Counter((row["domain"], row["asker"]) for row in ROWS)
    assert counts == dict.fromkeys(product(DOMAINS, ASKERS), 15)


def test_median_lengths_are_within_a_fifth_of_each_other_by_domain_and_by_asker() -> None:
    for medians in (
        [median_words(domain=domain) for domain in DOMAINS],
        [median_words(asker=asker) for asker in ASKERS],
        [median_words(domain=d, asker=a) for d, a in product(DOMAINS, ASKERS)],
    ):
        assert max(medians) <= 1.2 * min(medians)


def test_no_question_stands_twice_and_ids_rise_within_each_domain() -> None:
    assert len({row["text"].casefold() for row in ROWS}) == len(ROWS)
    places = [(DOMAINS.index(row["domain"]), row["id"]) for row in ROWS]
    assert places == sorted(set(places))
    assert all(row["id"].startswith(row["domain"] + "-") for row in ROWS)
