"""How right the information table is, on routers whose information is known; as JSON.

`bias`: the shipped samples and queries (their real words, documents and neighbours) with routers
that are made: bits known in closed form beside what is reported, what raw − null would report, and
how often the interval holds the truth. Truth is that of the text at hand: its token ids and domains
as they are, the router's own chances instead of counts.

`size`: how often p < 0.05 where no domain differs, over designs of unlike lengths and unlike
homogeneity of documents; `power`: the same where one does.

    python benchmarks/calibration_information.py [--runs 200] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

from moescope.metrics.information import SampledText, layer_information, previous_tokens

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Words(NamedTuple):
    """Tokens of documents, all (T,); ``previous`` as in `previous_tokens`."""

    token: Ints
    domain: Ints
    doc: Ints
    previous: Ints

    @classmethod
    def of(cls, documents: Sequence[Ints], domains: Sequence[int]) -> Words:
        """Join documents, each with its domain."""
        sizes = [len(d) for d in documents]
        token = np.unique(np.concatenate(documents), return_inverse=True)[1].astype(np.int64)
        doc = np.repeat(np.arange(len(sizes)), sizes)
        place = np.concatenate([np.arange(n) for n in sizes])
        previous = previous_tokens(token, doc, np.zeros_like(doc), place)
        return cls(token, np.repeat(np.asarray(domains), sizes), doc, previous)

    def text(self) -> SampledText:
        """As the estimators take it."""
        return SampledText(self.token, self.domain, self.doc, self.previous)


def shipped(domains: Sequence[str], queries: bool) -> Words:
    """Text of the demo in tokens of its model, up to 8,192 of each domain."""
    from tokenizers import Tokenizer

    from moescope.demo import MODEL, QUERIES, SAMPLES

    tokenizer = Tokenizer.from_file(str(Path(MODEL) / "tokenizer.json"))
    documents, places = [], []
    for d, name in enumerate(domains):
        file, taken = Path(QUERIES if queries else Path(SAMPLES) / f"{name}.jsonl"), 0
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["domain"] == name and taken < 8192:
                documents.append(np.asarray(tokenizer.encode(row["text"]).ids))
                places.append(d)
                taken += len(documents[-1])
    return Words.of(documents, places)


def invented(
    lengths: Sequence[Sequence[int]], tilt: float, vocabulary: int, rng: np.random.Generator
) -> Words:
    """Documents of words with Zipf's odds, which the domains tilt."""
    fixed = np.random.default_rng(0)
    odds = -1.05 * np.log(np.arange(1, vocabulary + 1) + 2)
    shares = np.exp(odds + tilt * fixed.normal(size=(len(lengths), vocabulary)))
    shares /= shares.sum(1, keepdims=True)
    pairs = [(d, n) for d, sizes in enumerate(lengths) for n in sizes]
    return Words.of(
        [rng.choice(vocabulary, n, p=shares[d]) for d, n in pairs], [d for d, _ in pairs]
    )


def any_experts(size: int, experts: int, top_k: int, rng: np.random.Generator) -> Ints:
    return np.argsort(rng.random((size, experts)), axis=1)[:, :top_k]


def own_label(words: Words, kind: str) -> Ints:
    """What the router goes by."""
    label = {
        "token": words.token,
        "domain": words.domain,
        "token × domain": words.token * 99 + words.domain,
        "two tokens": words.token * (int(words.token.max()) + 2) + words.previous + 1,
        "nothing": np.zeros_like(words.token),
    }[kind]
    return np.unique(label, return_inverse=True)[1].reshape(-1)


def truth(words: Words, own_TK: Ints, noise: float, experts: int) -> list[float]:
    """The four quantities, where a token's own experts run except for a share of noise."""
    top_k = own_TK.shape[1]

    def given(label: Ints) -> float:
        label = np.unique(label, return_inverse=True)[1].reshape(-1)
        times = np.bincount(label).astype(np.float64)
        cells = np.bincount(
            (label[:, None] * experts + own_TK).reshape(-1), minlength=times.size * experts
        )
        share = (1 - noise) / top_k * cells.reshape(-1, experts) / times[:, None] + noise / experts
        logs = np.log2(share, where=share > 0, out=np.zeros_like(share))
        return float(-(times[:, None] * share * logs).sum() / label.size)

    domains = int(words.domain.max()) + 1
    pair = own_label(words, "two tokens")
    known = words.previous >= 0
    pair = np.where(known, pair, pair.max() + 1 + np.arange(pair.size))  # alone: tells nothing
    everything = given(np.zeros_like(words.token))
    by_token, by_pair = given(words.token), given(pair)
    return [
        everything - given(words.domain),
        everything - by_token,
        by_token - given(words.token * domains + words.domain),
        by_pair - given(pair * domains + words.domain),
    ]


ROUTERS = [
    ("nothing", 1.0), ("token", 0.0), ("token", 0.3), ("token", 0.7), ("domain", 0.0),
    ("domain", 0.5), ("domain", 0.9), ("token × domain", 0.0), ("token × domain", 0.5),
    ("two tokens", 0.0), ("two tokens", 0.3),
]  # fmt: skip

QUANTITIES = ("I(E;D)", "I(E;X)", "I(E;D|X)", "I(E;D|X,P)")

TEXTS = {
    "samples, 4 domains": (("legal", "literature", "technical_docs", "drama"), False),
    "samples, 2 domains": (("legal", "mathematics"), False),
    "queries, 4 domains": (
        ("ndis_policy", "ndis_legal", "support_coordination", "everyday"), True,
    ),
}  # fmt: skip


def bias(runs: int) -> list[dict[str, Any]]:
    """Every text × router × (E, K) with ``runs`` draws of the router."""
    rows = []
    for name, (domains, queries) in TEXTS.items():
        words = shipped(domains, queries)
        text = words.text()
        for experts, top_k in ((8, 1), (64, 8)):
            for kind, noise in ROUTERS:
                drawn = [_one(words, text, experts, top_k, kind, noise, r) for r in range(runs)]
                rows += _summed(
                    np.asarray(drawn), text=name, experts=experts, top_k=top_k, router=kind,
                    noise=noise, runs=runs,
                )  # fmt: skip
    return rows


def _one(
    words: Words, text: SampledText, experts: int, top_k: int, kind: str, noise: float, run: int
) -> list[list[float]]:
    rng = np.random.default_rng([1, run])
    label = own_label(words, kind)
    own = any_experts(int(label.max()) + 1, experts, top_k, rng)[label]
    other = any_experts(label.size, experts, top_k, rng)
    ids = np.where(rng.random((label.size, 1)) < noise, other, own)
    made = layer_information(ids, text, experts, seed=run)
    known = truth(words, own, noise, experts)
    return [
        [t, b.corrected, b.raw - b.null, b.low <= t <= b.high]
        for t, b in zip(known, made[:4], strict=True)
    ]


def _summed(drawn_RQ4: Floats, **about: Any) -> list[dict[str, Any]]:
    rows = []
    for q, name in enumerate(QUANTITIES):
        true, made, plain, held = drawn_RQ4[:, q].T
        rows.append({
            **about, "quantity": name, "truth": float(true.mean()), "reported": float(made.mean()),
            "raw_less_null": float(plain.mean()), "bias": float((made - true).mean()),
            "rmse": float(np.sqrt(((made - true) ** 2).mean())), "coverage": float(held.mean()),
        })  # fmt: skip
    return rows


EVEN = 1e9


class Design(NamedTuple):
    """Documents of each domain, and what their routers follow.

    ``lengths`` by domain; ``moods``: concentration of what single documents prefer, by domain;
    ``follow``: share of the tokens that follow their id; ``sharp``: how strictly; ``vocabulary``.
    """

    lengths: list[list[int]]
    moods: list[float]
    follow: float = 0.5
    sharp: float = 1.5
    vocabulary: int = 1500


DESIGNS = {
    "20 + 20 of 20 tokens": Design([[20] * 20] * 2, [4, 4]),
    "20 + 20 of 80": Design([[80] * 20] * 2, [4, 4]),
    "20 + 20 of 400": Design([[400] * 20] * 2, [4, 4]),
    "20 + 20 of 400, no moods": Design([[400] * 20] * 2, [EVEN, EVEN]),
    "20 + 20 of 100, 20 words, 80 % decided by them": Design(
        [[100] * 20] * 2, [EVEN, EVEN], 0.8, 8.0, 20
    ),
    "10 + 10 of 400": Design([[400] * 10] * 2, [4, 4]),
    "5 + 5 of 2,000": Design([[2000] * 5] * 2, [4, 4]),
    "5 + 5 of 200": Design([[200] * 5] * 2, [4, 4]),
    "15 × 4 domains of 100": Design([[100] * 15] * 4, [4] * 4),
    "40 of 20 + 10 of 400": Design([[20] * 40, [400] * 10], [4, 4]),
    "100 of 20 + 5 of 400": Design([[20] * 100, [400] * 5], [4, 4]),
    "100 of 20 + 5 of 400, no moods": Design([[20] * 100, [400] * 5], [EVEN, EVEN]),
    "100 of 20 + 20 of 200": Design([[20] * 100, [200] * 20], [4, 4]),
    "10 strong moods + 40 weak, of 200": Design([[200] * 10, [200] * 40], [2, 100]),
    "40 strong moods + 10 weak, of 200": Design([[200] * 40, [200] * 10], [2, 100]),
}


def tested(design: Design, effect: float, seed: Sequence[int]) -> list[float]:
    """The p of I(E;D) on domains with the same words; of I(E;D|X) and I(E;D|X,P) on tilted ones.

    A token follows its id (with ``effect``, differently in every domain) or what its document
    prefers: a draw from Dirichlet(mood/E, …), whose mean is even.
    """
    lengths, made, experts = design.lengths, [], 8
    for tilt in (0.0, 1.0):
        rng = np.random.default_rng(seed)
        words = invented(lengths, tilt, design.vocabulary, rng)
        leaning = rng.normal(0, design.sharp, (int(words.token.max()) + 1, experts))[words.token]
        leaning = leaning + effect * rng.normal(0, 1, (len(lengths), experts))[words.domain]
        follow = (leaning + rng.gumbel(size=leaning.shape)).argmax(1)
        moods = np.minimum(np.repeat(design.moods, [len(n) for n in lengths]) / experts, 1e6)
        shares = np.stack([rng.dirichlet(np.full(experts, mood)) for mood in moods])
        prefer = (rng.random((words.doc.size, 1)) > shares.cumsum(1)[words.doc, :-1]).sum(1)
        ids = np.where(rng.random(words.doc.size) < design.follow, follow, prefer)[:, None]
        made.append(layer_information(ids, words.text(), experts, seed=seed[-1], shuffles=1))
    plain, tilted = made
    return [
        plain.expert_domain.p,
        tilted.expert_domain_given_token.p,
        tilted.expert_domain_given_pair.p,
    ]


def rejected(runs: int, effect: float, designs: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for name in designs:
        place = list(DESIGNS).index(name)
        p = np.asarray([tested(DESIGNS[name], effect, (2, place, r)) for r in range(runs)])
        shares = (p < 0.05).mean(0).tolist()
        rows.append({
            "design": name, "effect": effect, "runs": runs,
            **dict(zip((QUANTITIES[0], *QUANTITIES[2:]), shares, strict=True)),
        })  # fmt: skip
        print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=300, help="nulls for each design")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    powered = ["20 + 20 of 80", "20 + 20 of 400", "40 of 20 + 10 of 400", "100 of 20 + 20 of 200"]
    result = {
        "bias": bias(max(2, options.runs // 50)),
        "size": rejected(options.runs, 0.0, list(DESIGNS)),
        "power": [
            row
            for effect in (0.3, 0.6)
            for row in rejected(max(2, options.runs // 3), effect, powered)
        ],
    }
    result["seconds"] = round(time.monotonic() - began)
    text = json.dumps(result, indent=1, ensure_ascii=False)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    for row in result["bias"]:
        print(json.dumps(row, ensure_ascii=False))
    print(f"{result['seconds']} s")


if __name__ == "__main__":
    main()
