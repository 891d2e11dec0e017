"""A small MoE whose truth is known: one expert carries what a domain needs, or none matters more.

Two OLMoE layers of 32 experts, 2 per token, with weights set by hand. Tokens are one-hot in the
residual stream; each is sent to two experts, and each expert serves four tokens. A text walks from
token x to f(x), mostly. The output head knows f, but in the planted model not for four tokens of
domain ``d0``: for those the answer is written by one expert of layer 1, which serves nobody else.
All other experts are small random functions. In the null model the head knows all of f, every
expert is such a random function, and the labels of documents say nothing.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from tests.support.tiny import tiny_model

from moescope.axes import ExpertRef
from moescope.measure.windows import TextWindow
from moescope.models import LoadedModel, ModelSpec, find_anatomy
from moescope.models.loading import weights_fingerprint

EXPERTS, WORDS, DOMAINS, FIRST_WORD = 32, 64, 4, 4
VOCABULARY = FIRST_WORD + WORDS
ANSWERS = 4
"""Tokens whose next one only the planted expert knows; each has a direction of its own."""

WIDTH, LAYER = 72, 1
GAIN = WIDTH**0.5
"""Length of a normalised one-hot vector."""


@dataclass(frozen=True)
class Planted:
    """A model, its text, and which expert carries domain ``d0`` (None in the null model)."""

    loaded: LoadedModel
    windows: list[TextWindow]
    carrier: ExpertRef | None


def planted(seed: int, documents: int = 6, tokens: int = 24) -> Planted:
    """One expert carries what domain ``d0`` needs."""
    return _build(seed, documents, tokens, plant=True)


def exchangeable(seed: int, documents: int = 6, tokens: int = 24) -> Planted:
    """No expert differs from the others but by chance, and domains are labels drawn at random."""
    return _build(seed, documents, tokens, plant=False)


def _build(seed: int, documents: int, tokens: int, *, plant: bool) -> Planted:
    rng = np.random.default_rng([seed, int(plant)])
    carrier = int(rng.integers(EXPERTS))
    next_of = _bigrams(rng)
    model = tiny_model(
        "olmoe", seed=seed, vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=8,
        num_hidden_layers=2, num_experts=EXPERTS, num_experts_per_tok=2, num_attention_heads=2,
        num_key_value_heads=2, mlp_only_layers=[],
    )  # fmt: skip
    with torch.no_grad():
        _set_body(model, rng, carrier)
        _set_head(model, next_of, known_from=ANSWERS if plant else 0)
        if plant:
            _set_carrier(model.model.layers[LAYER].mlp.experts, carrier)
    loaded = LoadedModel(
        ModelSpec("planted"), model, SimpleNamespace(pad_token_id=0),
        find_anatomy(model, model.config), f"config-{seed}", "tokenizer",
        weights_fingerprint(model),
        "float32", "float32", "cpu", None,
    )  # fmt: skip
    windows = _text(rng, next_of, documents, tokens, labels_mean_something=plant)
    return Planted(loaded, windows, ExpertRef(LAYER, carrier) if plant else None)


def _bigrams(rng: np.random.Generator) -> np.ndarray:
    """f: within each domain's 16 words a cycle through all of them."""
    next_of = np.zeros(WORDS, np.int64)
    for words in np.arange(WORDS).reshape(DOMAINS, -1):
        order = rng.permutation(words)
        next_of[order] = np.roll(order, -1)
    return next_of


def _served(rng: np.random.Generator, carrier: int) -> np.ndarray:
    """Two experts of each word, (WORDS, 2); words 0 to 3 have the carrier, no others do."""
    seats = np.repeat(np.arange(EXPERTS), 4)
    others = seats[seats != carrier]
    while True:
        rng.shuffle(others)
        pairs = np.concatenate(
            [
                others[ANSWERS:].reshape(-1, 2),
            ]
        )
        first = np.stack([np.full(ANSWERS, carrier), others[:ANSWERS]], 1)
        served = np.concatenate([first, pairs])
        if (served[:, 0] != served[:, 1]).all():
            return served


def _set_body(model: torch.nn.Module, rng: np.random.Generator, carrier: int) -> None:
    noise = torch.Generator().manual_seed(int(rng.integers(2**31)))
    model.model.embed_tokens.weight.zero_()
    model.model.embed_tokens.weight[:, :VOCABULARY] = torch.eye(VOCABULARY)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.normal_(std=0.01, generator=noise)
        layer.mlp.gate.weight.normal_(std=0.01, generator=noise)
        for word, experts in enumerate(_served(rng, carrier)):
            layer.mlp.gate.weight[torch.as_tensor(experts), FIRST_WORD + word] += 8 / GAIN
        for weight in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
            weight.normal_(std=0.06, generator=noise)


def _set_head(model: torch.nn.Module, next_of: np.ndarray, known_from: int) -> None:
    """Logit 4 for the word that follows, where the head knows it; 4 too for a full answer."""
    head = model.lm_head.weight
    head.zero_()
    for word in range(known_from, WORDS):
        head[FIRST_WORD + next_of[word], FIRST_WORD + word] += 4 / GAIN
    for word in range(known_from):
        head[FIRST_WORD + next_of[word], VOCABULARY + word] += 8 / GAIN


def _set_carrier(experts: torch.nn.Module, carrier: int) -> None:
    """Neuron i answers word i: it fires on that one-hot alone and writes direction i."""
    width = experts.down_proj.shape[-1]
    experts.gate_up_proj[carrier] = 0.0
    experts.down_proj[carrier] = 0.0
    for word in range(ANSWERS):
        experts.gate_up_proj[carrier, word, FIRST_WORD + word] = 4 / GAIN
        experts.gate_up_proj[carrier, width + word, FIRST_WORD + word] = 1 / GAIN
        experts.down_proj[carrier, VOCABULARY + word, word] = 0.5


def _text(
    rng: np.random.Generator,
    next_of: np.ndarray,
    documents: int,
    tokens: int,
    *,
    labels_mean_something: bool,
) -> list[TextWindow]:
    """Walks along f that stray to another word of the domain with chance 0.2."""
    windows = []
    for n in range(DOMAINS * documents):
        label = n % DOMAINS
        home = label if labels_mean_something else int(rng.integers(DOMAINS))
        words = np.arange(WORDS).reshape(DOMAINS, -1)[home]
        walk = [int(rng.choice(words))]
        while len(walk) < tokens:
            stray = rng.random() < 0.2
            walk.append(int(rng.choice(words) if stray else next_of[walk[-1]]))
        ids = np.concatenate([[1], FIRST_WORD + np.asarray(walk)]).astype(np.int32)
        counted = np.arange(ids.size) > 0
        windows.append(TextWindow(f"doc{n}", f"d{label}", 0, 0, ids, counted))
    return sorted(windows, key=lambda w: w.domain)
