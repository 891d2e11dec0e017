"""The summary says what the numbers say, by rule, and no more."""

import math
from typing import Any

import pytest

from moescope.metrics.specialization import used
from moescope.profiles.facts import Absent, Part
from moescope.profiles.summary import describe, flags_of, level_of, quote
from moescope.result import plain

NAN = math.nan
LOAD = Part(
    count=8112, tokens=200_000, top_k=8, documents=96, load=0.0101, even=1 / 64, rate_chance=0.125,
)  # fmt: skip
VOCABULARY = Part(top_token=" the", top_share=0.1)
CONTRIBUTION = Part(peak_ratio=1.0, super_rule=False)


def domain(name: str, lift: float, q: float, **changes: Any) -> Part:
    made = Part(
        domain=name, tokens=1000, count=100, documents=20, rate=0.1 * lift, low=NAN, high=NAN,
        others=0.1, lift=lift, lift_low=lift * 0.9, lift_high=lift * 1.15, q=q, of_expert=0.31,
        of_text=0.078, gate_mass=0.1, gate_low=NAN, gate_high=NAN, by_token=0.1, of_documents=25,
    )  # fmt: skip
    return made | {"used": str(used(q, lift, 1.0))} | changes


def tokens(*rows: tuple[str, float, float], overlap: float = 0.9) -> Part:
    listed = [Part(token=t, share=share, lift=lift) for t, share, lift in rows]
    return Part(rows=listed, overlap=overlap, assignments=5000)


def pushes(*names: str, overlap: float = 0.8) -> Part:
    return Part(promoted=[Part(token=t) for t in names], promoted_overlap=overlap, tokens=640)


TYPICAL = tokens((" return", 0.3, 8.0), (" def", 0.2, 7.0), ("self", 0.1, 6.0))


DOMAINS = [domain("code", 4.1, 0.0004), domain("text", 0.9, 0.6)]
PROFILE = Part(
    expert="L3E17", load=LOAD, domains=DOMAINS, tokens_in=TYPICAL, vocabulary=VOCABULARY,
    pushes=pushes(" self", " None"), contribution=CONTRIBUTION,
)  # fmt: skip


def sentence(**parts: Any) -> str:
    return str(describe(PROFILE | parts)["summary"])


def flags(load: Part = LOAD, contribution: Part = CONTRIBUTION) -> list[str]:
    return flags_of(PROFILE | {"load": load, "contribution": contribution})


def test_an_expert_of_a_domain() -> None:
    assert sentence() == (
        "L3E17 serves code much more: 31 % of its 8,112 assignments are code (7.8 % of the text), "
        "4.1× the other domains' rate [3.7, 4.7], q < 0.001; most typical tokens ‘ return’, "
        "‘ def’, ‘self’ (60 % of 5,000 assignments, 8.3 % of the text); it pushes towards "
        "‘ self’, ‘ None’ (640 assignments measured). "
        "Sure: low (100 assignments in 20 documents of code)."
    )


def test_the_domain_with_the_surest_lift_leads_and_all_others_are_named() -> None:
    wild = domain("rare", 9.0, 0.01, lift_low=1.2, lift_high=60.0)
    little, less = domain("chat", 1.1, 0.04), domain("news", 0.9, 0.02)
    text = sentence(domains=[less, wild, little, domain("code", 4.1, 0.001), domain("math", 2, 0)])
    assert text.startswith("L3E17 serves code much more: ")
    assert "; it also serves math (2.0×), rare (9.0×), chat (1.1×)" in text
    assert "; it also is used less for news (0.90×)" in text


@pytest.mark.parametrize(
    ("lift", "q", "says"),
    [
        (4.1, 0.051, ": no domain stands out (most: code, 4.1×, q = 0.051)"),
        (1.1, 0.6, ": no domain stands out (most: code, 1.1×, q = 0.60)"),
        (1.49, 0.049, " serves code more: "),
        (1.5, 0.049, " serves code much more: "),
        (
            0.7,
            0.001,
            " is used less for code: 0.70× the other domains' rate [0.63, 0.80], q",
        ),
        (0.25, 0.002, " is used much less for code: 0.25× "),
    ],
)
def test_the_rule_of_the_report_decides_what_is_claimed(lift: float, q: float, says: str) -> None:
    text = sentence(domains=[domain("code", lift, q)])
    assert text.startswith(f"L3E17{says}")
    assert ("serves" in text) == (used(q, lift, 1.0) == "more")


def test_a_domain_that_no_other_text_uses_has_no_number_for_a_lift() -> None:
    only = domain("code", math.inf, 0.001, lift_low=math.inf, lift_high=math.inf)
    assert "(7.8 % of the text), served nowhere else, q = 0.001;" in sentence(domains=[only])


def test_a_token_expert_is_called_one_whatever_its_domains() -> None:
    vocabulary = VOCABULARY | {"top_token": " the", "top_share": 0.7}
    text = sentence(vocabulary=vocabulary, tokens_in=tokens((" the", 0.7, 9.0), (" a", 0.1, 5.0)))
    assert text.startswith(
        "L3E17 is a token expert: 70 % of its assignments are ‘ the’; it serves code (4.1×); then "
        "‘ a’ (10 % of 5,000 assignments, 2.0 % of the text); it pushes"
    )


def test_dead_cold_and_never_chosen_need_enough_text() -> None:
    dead = LOAD | {"count": 3, "load": 0.00001, "documents": 2}
    assert sentence(load=dead).startswith(
        "L3E17 is dead on 200,000 tokens: chosen 3 times, 0.001 % of the layer's assignments"
    )
    never = LOAD | {"count": 0, "load": 0.0, "documents": 0}
    assert "was never chosen on 200,000 tokens" in sentence(load=never)
    cold = LOAD | {"load": 0.004, "count": 6400}
    assert "Cold: 0.4 % of the layer's assignments on 200,000 tokens" in sentence(load=cold)
    short = dead | {"tokens": 1000}  # 8,000 assignments: at 0.1 % one expects 8, at 0.5 % 40
    assert flags(short) == ["cold"]
    assert flags(short | {"tokens": 200}) == []
    text = sentence(load=short)
    assert "served too few tokens to say more: 3 assignments in 2 documents" in text
    assert text.endswith("; it serves code (4.1×).")  # the report counts this cell too


@pytest.mark.parametrize(
    ("count", "documents", "level"),
    [(1000, 30, "high"), (1000, 29, "moderate"), (999, 30, "moderate"), (300, 10, "moderate"),
     (299, 10, "low"), (100, 5, "low"), (99, 50, "none"), (5000, 4, "none")],
)  # fmt: skip
def test_how_sure_follows_assignments_and_documents(count: int, documents: int, level: str) -> None:
    assert level_of(count, documents) == level


@pytest.mark.parametrize(
    ("domains", "sure"),
    [
        ([domain("code", 4, 0.001, count=2000, documents=40)], "high"),
        ([domain("code", 4, 0.001, count=2000, documents=29)], "moderate"),
        ([domain("code", 4, 0.001, count=2000, documents=4)], "low"),
        ([domain("code", 0.5, 0.001, of_documents=29), domain("a", 1, 0.9)], "moderate"),
        ([domain("code", 0.5, 0.001, of_documents=30), domain("a", 1, 0.9)], "high"),
        ([domain("code", 1, 0.9, of_documents=90), domain("a", 1, 0.9, of_documents=8)], "low"),
        ([domain("code", 1, 0.9, of_documents=90), domain("a", 1, NAN, of_documents=3)], "high"),
    ],
)
def test_sureness_counts_the_documents_of_the_domain_that_is_spoken_of(
    domains: list[Part], sure: str
) -> None:
    """The expert has 8,112 assignments in 96 documents whatever the domains."""
    assert describe(PROFILE | {"domains": domains})["sure_level"] == sure


def test_lists_that_do_not_repeat_are_not_named() -> None:
    text = sentence(tokens_in=TYPICAL | {"overlap": 0.3}, pushes=pushes(" x", overlap=0.4))
    assert "its tokens do not repeat between halves of the documents (overlap 0.30)" in text
    assert "what it pushes towards does not repeat" in text
    assert "‘ return’" not in text
    assert "‘ x’" not in text


def test_typical_tokens_have_their_share_of_the_assignments_and_of_the_text() -> None:
    some = tokens((" return", 0.10, 8.0), (" def", 0.05, 7.0), ("the", 0.9, 1.1))
    assert "most typical tokens ‘ return’, ‘ def’ (15 % of 5,000 assignments, 2.0 % of" in sentence(
        tokens_in=some
    )
    assert "no token stands out" in sentence(tokens_in=tokens(("the", 0.9, 1.2)))


def test_super_experts_need_the_rule_and_the_distance() -> None:
    rule = CONTRIBUTION | {"super_rule": True}
    assert flags(contribution=rule) == []  # the rule alone always names one
    assert flags(contribution=rule | {"peak_ratio": 60.0}) == ["super"]
    assert "60× the median expert's" in sentence(contribution=rule | {"peak_ratio": 60.0})
    assert flags(contribution=CONTRIBUTION | {"peak_ratio": 60.0}) == []


def test_what_is_absent_is_left_out_of_the_sentence() -> None:
    none = Absent("made without the model")
    text = sentence(
        pushes=none, contribution=none, tokens_in=none, domains=Absent("one domain only")
    )
    assert text == "L3E17: one domain only. Sure: high (8,112 assignments in 96 documents)."
    untested = [domain("code", 2.0, NAN) | {"lift_low": NAN, "lift_high": NAN}]
    assert "domains were not compared" in sentence(domains=untested)


def test_tokens_are_quoted_with_their_blanks_made_visible() -> None:
    assert quote(" a\n") == "‘ a⏎’"
    assert quote(" ") == "‘␣’"
    assert quote("\n        ") == "‘⏎␣×8’"


def test_what_is_not_a_number_leaves_as_none() -> None:
    made = plain({"a": [NAN, math.inf, 1 / 3], "b": (True, 2), "c": Absent("so")}, 6)
    assert made == {"a": [None, None, 0.333333], "b": [True, 2], "c": {"absent": "so"}}
