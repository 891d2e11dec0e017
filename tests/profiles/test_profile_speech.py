"""Parts of speech: words found under tokens by their characters, shares by hand, absence said.

spaCy need not be installed here: a stand-in splits on blanks and tags by a list.
"""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moescope.errors import BadInputError, MissingExtraError
from moescope.metrics.runs import AnalyzedRun
from moescope.metrics.view import PhaseView
from moescope.profiles.profile import ProfileOptions, profile_expert
from moescope.profiles.sampled import SampledDocuments
from moescope.profiles.speech import SPACE, speech_mix, tag_tokens

TAGS = {"the": "DET", "river": "NOUN", "boils": "VERB", "tea": "NOUN"}


class Word:
    def __init__(self, idx: int, text: str, tags: dict[str, str]) -> None:
        self.idx, self.text, self.pos_ = idx, text, tags.get(text.lower(), "X")

    def __len__(self) -> int:
        return len(self.text)


class Pipeline:
    meta = {"lang": "en", "name": "stand_in", "version": "1.0"}  # noqa: RUF012

    def __init__(self, tags: dict[str, str]) -> None:
        self.pipe_names = ["tagger", "ner"]
        self._tags = tags

    def disable_pipe(self, name: str) -> None:
        self.pipe_names.remove(name)

    def pipe(self, texts: Any, batch_size: int) -> Any:
        for text in texts:
            words, start = [], 0
            for part in text.split(" "):
                if part:
                    words.append(Word(text.index(part, start), part, self._tags))
                start += len(part) + 1
            yield words


@pytest.fixture
def spacy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module: Any = ModuleType("spacy")
    module.tags = dict(TAGS)

    def load(name: str) -> Pipeline:
        if name == "missing":
            raise OSError("no such pipeline")
        return Pipeline(module.tags)

    module.load = load
    monkeypatch.setitem(sys.modules, "spacy", module)
    return module


PIECES = {1: "the", 2: " ri", 3: "ver", 4: " ", 5: "tea", 6: " boils", 7: ""}
RUN: Any = SimpleNamespace(token_text=lambda i: PIECES[int(i)])


def rows(ids: list[int], windows: list[int] | None = None) -> Any:
    size = len(ids)
    return SimpleNamespace(
        token_id=np.asarray(ids), doc=np.zeros(size, np.int64), pos=np.arange(size),
        window=np.zeros(size, np.int64) if windows is None else np.asarray(windows),
    )  # fmt: skip


def test_a_token_takes_the_tag_of_the_word_that_it_is_part_of(spacy: ModuleType) -> None:
    made = tag_tokens(RUN, rows([1, 2, 3, 4, 5, 6]))
    names = [made.names[n] if n >= 0 else None for n in made.numbers]
    # "the river tea boils": "ri" and "ver" are both under "river", the lone blank is under none
    assert names == ["DET", "NOUN", "NOUN", SPACE, "NOUN", "VERB"]
    assert made.pipeline == "en_stand_in 1.0"


def test_windows_are_tagged_apart(spacy: ModuleType) -> None:
    together, apart = tag_tokens(RUN, rows([1, 5])), tag_tokens(RUN, rows([1, 5], [0, 1]))
    assert [together.names[n] for n in together.numbers] == ["X", "X"]  # one word: "thetea"
    assert [apart.names[n] for n in apart.numbers] == ["DET", "NOUN"]


def test_a_token_without_characters_has_no_tag(spacy: ModuleType) -> None:
    assert tag_tokens(RUN, rows([7, 1])).numbers.tolist()[0] == -1


def test_shares_and_lift_by_hand(spacy: ModuleType, tiny_run: AnalyzedRun) -> None:
    view = PhaseView(tiny_run, "prefill")
    tokens = view.tokens
    assert tokens is not None
    tags = tag_tokens(tiny_run, tokens)
    sampled = SampledDocuments(view, tokens)
    layer = view.layers[1]
    made = speech_mix(tags, sampled, layer)
    assert made.share.sum(1) == pytest.approx(np.ones(layer.num_experts))
    assert made.text_share.sum() == pytest.approx(1.0)
    served = (tokens.ids[layer.layer_idx] == 3).any(1)
    for p in range(len(tags.names)):
        # every document is in the sample whole, so weights are 1
        assert made.times[3, p] == (served & (tags.numbers == p)).sum()
        assert made.share[3, p] == pytest.approx(
            tags.numbers[served].tolist().count(p) / served.sum()
        )
        assert made.low[3, p] <= made.share[3, p] <= made.high[3, p]
    assert np.allclose(made.lift, made.share / made.text_share)


def test_without_spacy_the_part_is_absent_and_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tiny_run: AnalyzedRun
) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(MissingExtraError, match=r"moescope\[pos\]"):
        tag_tokens(RUN, rows([1]))
    made = profile_expert(tiny_run, "L1E3", ProfileOptions(use_model=False)).to_dict()
    assert "moescope[pos]" in made["parts_of_speech"]["absent"]


def test_without_a_pipeline_it_says_which_to_download(spacy: ModuleType) -> None:
    with pytest.raises(BadInputError, match="spacy download missing"):
        tag_tokens(RUN, rows([1]), "missing")


def test_a_pipeline_that_tags_nothing_is_refused(spacy: Any) -> None:
    spacy.tags = {"the": "", "tea": ""}
    with pytest.raises(BadInputError, match="tags no parts of speech"):
        tag_tokens(RUN, rows([1, 5], [0, 1]))


def test_a_profile_holds_the_mix(spacy: ModuleType, tiny_run: AnalyzedRun) -> None:
    made = profile_expert(tiny_run, "L1E3", ProfileOptions(use_model=False)).to_dict()
    part = made["parts_of_speech"]
    assert part["assignments"] == sum(r["count"] for r in part["rows"])
    shares = [r["share"] for r in part["rows"]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1.0, abs=1e-4)
