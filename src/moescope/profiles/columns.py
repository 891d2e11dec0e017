"""The tables of profiles: their columns, with type and meaning.

They lie as ``RUN/profiles/NAME.parquet``, and are what the page draws and the JSON of an expert is
made from. The figures of an absent part are null; one that could not be known is NaN.
"""

from __future__ import annotations

import pyarrow as pa

_TEXT, _INT, _NUMBER = pa.string(), pa.int64(), pa.float64()
_HALVES = "and in each half of the documents"

COLUMNS: dict[str, dict[str, tuple[pa.DataType, str]]] = {
    "experts": {
        "name": (_TEXT, "L5E9"),
        "summary": (_TEXT, "a sentence or two, by rule from the figures"),
        "flags": (pa.list_(_TEXT), "never chosen, dead, cold, super, token expert"),
        "role_kind role_words role_about": (_TEXT, "what it is, and the domain or token meant"),
        "sure_level": (_TEXT, "high, moderate, low or none"),
        "sure_assignments sure_documents": (_INT, "what that rests on"),
        "sure_domain": (_TEXT, "the domain whose documents these are; null: of all text"),
        "count tokens documents": (_INT, "assignments, counted tokens of the run, documents"),
        "top_k": (_INT, "K, experts that serve each token"),
        "load even": (_NUMBER, "count/(T·K), and the even share 1/E"),
        "rate rate_low rate_high rate_chance": (_NUMBER, "count/T, 95 % over documents, K/E"),
        "gate_mass gate_low gate_high": (_NUMBER, "mean weight, 0 where not chosen; 95 %"),
        "first_share": (_NUMBER, "share of tokens whose first choice it is"),
        "tokens_in_assignments": (_INT, "assignments in the token tables"),
        "tokens_in_overlap": (_NUMBER, "of its list, what two halves of the documents share"),
        "vocabulary_value vocabulary_null": (_NUMBER, "see `tokens_in.Vocabulary`"),
        "vocabulary_excess vocabulary_excess_half_a vocabulary_excess_half_b": (
            _NUMBER, f"0 by chance, 1 when it serves all occurrences of its ids; {_HALVES}",
        ),
        "vocabulary_top_token": (_TEXT, "its commonest token"),
        "vocabulary_top_share": (_NUMBER, "of its assignments"),
        "vocabulary_half_types vocabulary_text_half_types": (
            _INT, "how many ids make up half of its assignments, and half of the text",
        ),
        "coactivated_chance previous_chance following_chance": (
            _NUMBER, "the lift that even random routing gives",
        ),
        "parts_of_speech_assignments": (_INT, "tagged"),
        "parts_of_speech_pipeline": (_TEXT, "by what"),
        "contribution_tokens contribution_documents": (_INT, "measured, and their documents"),
        "contribution_mean contribution_low contribution_high": (
            _NUMBER, "of ‖w·E(x)‖ where chosen (REAP, weights as multiplied), 95 % over documents",
        ),
        "contribution_share contribution_load_share": (
            _NUMBER, "of the layer's sum, and of its measured assignments, to compare",
        ),
        "contribution_weight": (_NUMBER, "mean w"),
        "contribution_activation contribution_activation_share": (
            _NUMBER, "mean ‖E(x)‖ (EAN), and its share of the layer's sum",
        ),
        "contribution_peak contribution_counted_peak contribution_peak_ratio": (
            _NUMBER, "largest |component| of E(x) over all tokens read, over counted ones, and "
            "over the median expert's",
        ),
        "contribution_super_rule": (
            pa.bool_(), "the published rule for super experts holds; the largest of all experts "
            "always meets it if its layer is early",
        ),
        "pushes_tokens": (_INT, "measured assignments behind the pushes"),
        "pushes_agreement": (_NUMBER, "Spearman between the halves, over the vocabulary"),
        "pushes_promoted_overlap pushes_suppressed_overlap": (
            _NUMBER, "share of the strongest tokens that both halves have",
        ),
        "pushes_spread": (_NUMBER, "standard deviation of beyond over the vocabulary, in logits"),
        "pushes_factor": (_NUMBER, "between the experts' output and the residual stream"),
        "pushes_note": (_TEXT, "what the lens leaves out"),
        "similar_tokens": (_INT, "inputs that all experts of the layer were asked about"),
    },
    "absent": {"part reason": (_TEXT, "a part that is not there, and why")},
    "domains": {
        "domain": (_TEXT, "its name"),
        "tokens count": (_INT, "its tokens, and those that chose the expert"),
        "documents of_documents": (_INT, "in which the expert was chosen, and all of the domain"),
        "rate low high": (_NUMBER, "share of its tokens that chose the expert, 95 %"),
        "others lift lift_low lift_high": (_NUMBER, "rate in all other domains; rate/others, 95 %"),
        "q": (_NUMBER, "false discovery rate over layers × experts × domains"),
        "used": (_TEXT, "more or less than for the other domains, or nothing: no difference shown"),
        "of_expert of_text": (_NUMBER, "its share of the expert's tokens, and of the text"),
        "gate_mass gate_low gate_high": (_NUMBER, "mean weight, 95 %"),
        "by_token": (_NUMBER, "rate that its token ids alone predict from the other domains"),
        "contribution": (_NUMBER, "mean ‖w·E(x)‖ on the domain"),
    },
    "tokens": {
        "rank": (_INT, "most beyond the expert's overall rate first"),
        "token": (_TEXT, "its text"),
        "token_id count": (_INT, "how often the expert served it"),
        "share of_token lift": (_NUMBER, "of its assignments, of the id's; over its rate"),
        "documents": (_INT, "sampled documents in which the expert served it"),
    },
    "partners": {
        "where": (_TEXT, "coactivated, previous or following"),
        "rank": (_INT, "strongest first, by a cautious lift"),
        "partner": (_TEXT, "L3E4"),
        "count": (_INT, "N_ij, tokens of both"),
        "given lift low high": (_NUMBER, "N_ij/N_i; N_ij·T/(N_i·N_j), 95 %"),
    },
    "speech": {
        "rank": (_INT, "most frequent first"),
        "tag": (_TEXT, "part of speech"),
        "count": (_INT, "sampled assignments"),
        "share low high text_share lift": (_NUMBER, "share, 95 %; that of the text; over it"),
    },
    "contexts": {
        "rank": (_INT, "largest contribution first, repeats left out"),
        "doc domain": (_TEXT, "the document"),
        "window pos token_id": (_INT, "position in the document"),
        "contribution weight": (_NUMBER, "‖w·E(x)‖, and w"),
        "before token after": (_TEXT, "the text, in order"),
    },
    "pushes": {
        "side": (_TEXT, "promoted or suppressed"),
        "rank token_id": (_INT, "strongest first"),
        "token": (_TEXT, "its text"),
        "own others beyond half_a half_b": (
            _NUMBER, f"mean Δlogit of the expert, of the layer's others, own − others; {_HALVES}",
        ),
    },
    "similar": {
        "rank": (_INT, "most similar first"),
        "partner": (_TEXT, "L3E4"),
        "cosine half_a half_b": (_NUMBER, f"mean, of outputs on the same inputs; {_HALVES}"),
    },
    "weights": {
        "tensor": (_TEXT, "one of its tensors"),
        "norm layer_mean z": (_NUMBER, "Frobenius norm, the layer's mean, z-score in the layer"),
    },
}  # fmt: skip
"""Table → columns → type and meaning, beside the ``layer`` and ``expert`` of every row."""


# Columns of the tables, by the names that they have in the run's tables and in what was measured.
LOAD = {
    "count": "count", "tokens": "tokens", "load": "load", "rate": "activation_rate",
    "rate_low": "ci_low", "rate_high": "ci_high", "gate_mass": "gate_mass",
    "first_share": "first_share",
}  # fmt: skip
DOMAIN_LOAD = {
    "count": "count", "tokens": "tokens", "rate": "activation_rate", "low": "ci_low",
    "high": "ci_high", "gate_mass": "gate_mass",
}  # fmt: skip
SPECIAL = {
    "others": "others", "lift": "lift_over_others", "lift_low": "lift_low",
    "lift_high": "lift_high", "q": "q", "by_token": "by_token",
}  # fmt: skip
CONTRIBUTION = {
    "mean": "contribution", "low": "contribution_low", "high": "contribution_high",
    "share": "contribution_share", "documents": "documents", "weight": "weight",
    "activation": "activation", "activation_share": "activation_share", "peak": "peak",
    "counted_peak": "counted_peak",
}  # fmt: skip


def schema_of(table: str) -> pa.Schema:
    """Columns of a table in order, with their types."""
    named = [(n, kind) for names, (kind, _) in COLUMNS[table].items() for n in names.split()]
    return pa.schema([("layer", _INT), ("expert", _INT), *named])
