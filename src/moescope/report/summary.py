"""Sentences made by rule from the numbers: "In short", and a heading for each figure.

Each sentence that names a number names beside it what chance gives. Nothing here says more than
its test: a difference is called one only at q < 0.05, and the absence of one is never called
equality.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moescope.metrics.intervals import FEW_DOCUMENTS
from moescope.metrics.specialization import Q_LEVEL
from moescope.metrics.view import ALL
from moescope.report.about import badly_predicted
from moescope.report.frames import Frame, bits, number, p_text, times
from moescope.words import counted, percent


def sentences(view: dict[str, Any], facts: dict[str, Any], tables: dict[str, Frame]) -> list[str]:
    """Four to six sentences about one phase."""
    out = [_scope(view, facts, tables), _cells(view["special"])]
    out += [
        s for s in (_strongest(view["special"]), _domain_or_token(tables), _evenness(tables)) if s
    ]
    out.append(_caveat(view, facts))
    return out


def headlines(view: dict[str, Any], tables: dict[str, Frame]) -> dict[str, str]:
    """A heading for each figure that does not depend on what the reader chooses."""
    return {
        "special": _special_title(view["special"]),
        "information": _information_title(tables["information"]),
        "bands": _bands_title(tables["phases"]),
        "balance": _balance_title(tables["balance"]),
        "decisiveness": _decisive_title(tables["decisiveness"]),
        "repetition": _repetition_title(tables["repetition"]),
        "vocabulary": _vocabulary_title(tables["vocabulary_specialization"]),
    }


def _scope(view: dict[str, Any], facts: dict[str, Any], tables: dict[str, Frame]) -> str:
    load = tables["load"].where(domain=ALL)
    layers = np.unique(load["layer"]).size
    chance = np.unique(load["activation_chance"].round(6)).tolist()
    shares = (
        percent(chance[0]) if len(chance) == 1 else f"{percent(chance[0])} to {percent(chance[-1])}"
    )
    spread = counted(len(facts["domains"]), "domain")
    documents = f"of {counted(facts['documents'], 'document')} " if facts["documents"] else ""
    return (
        f"{number(view['rates']['tokens'][0])} tokens {documents}in {spread} passed "
        f"{counted(layers, 'MoE layer')}; an expert chosen by chance would serve {shares} of them."
    )


def _cells(special: dict[str, Any]) -> str:
    if not special["tested"]:
        return (
            "Whether experts differ between domains was not tested: that takes at least two "
            "domains with at least five documents each."
        )
    tested = f"Of {number(special['tested'])} layer × expert × domain cells"
    if not special["passed"]:
        return (
            f"{tested}, none differs from the other domains at q < 0.05. That is no proof that the "
            "experts treat the domains alike: with this much text, small differences go unseen."
        )
    share = percent(special["passed"] / special["tested"])
    return (
        f"{tested}, {number(special['passed'])} ({share}) differ from the other domains at q < 0.05"
        f" ({number(special['over'])} used more, {number(special['under'])} less); of findings at "
        "this level about one in twenty is expected to be a false alarm, "
        "more where few documents use an expert, and then much."
    )


def _strongest(special: dict[str, Any]) -> str:
    top = special["top"]
    shown: list[str] = []
    for i, name in enumerate(top["name"]):
        q, value, others = top["q"][i], top["value"][i], top["others"][i]
        if len(shown) == 2 or q is None or q >= Q_LEVEL or value <= others:
            break
        shown.append(f"{name} for {top['domain'][i]}, {_cell_numbers(top, i)}")
    if not shown:
        return ""
    return (
        f"Most clearly specialised: {'. '.join(shown)}. p allows for their being chosen among all "
        f"{number(special['tested'])} cells; the sizes do not, and are likely somewhat too large."
    )


def _cell_numbers(top: dict[str, list[Any]], i: int) -> str:
    parts = [
        f"{percent(top['value'][i])} of its tokens (95 %: {percent(_known(top['ci_low'][i]))} to "
        f"{percent(_known(top['ci_high'][i]))}), {percent(_known(top['others'][i]))} elsewhere, "
        f"chance {percent(top['chance'][i])}"
    ]
    if top["by_token"][i] is not None:
        parts.append(
            f"on tokens that other domains use too {percent(top['on_shared'][i])} against "
            f"{percent(top['by_token'][i])} by these tokens alone"
        )
    return "; ".join([*parts, p_text(_known(top["p_max"][i]))])


def _domain_or_token(tables: dict[str, Frame]) -> str:
    info = tables["information"]
    if not len(info):
        return ""
    token, domain, beyond, top = _means(info)
    about_token = (
        f"On average over layers, an expert tells {bits(token)} bits about which token it serves "
        f"(of at most {bits(top)}"
    )
    if not _several_domains(info):
        return f"{about_token}, beyond chance)."
    layers, passed = _passed(info, "token")
    tested = (
        f"; the last is above chance at p < 0.05 in {passed} of {counted(layers, 'layer')}, where "
        f"chance alone gives {Q_LEVEL * layers:.1f}"
        if layers
        else ""
    )
    return (
        f"{about_token}), {bits(domain)} about the domain, and {_known_bits(beyond)} about the "
        f"domain once the current token is known (all beyond chance){tested}. {meaning(info)}"
    )


def _means(info: Frame) -> list[float]:
    """Bits about token, domain, domain beyond the token, and the most that there could be."""
    names = (f"i_expert_{n}_bits" for n in ("token", "domain", "domain_given_token"))
    # what is not known in one layer is in none
    return [float(np.mean(info[n])) for n in (*names, "max_bits")]


def _known_bits(value: float) -> str:
    return bits(value) if np.isfinite(value) else "an unknown number"


def _passed(info: Frame, given: str) -> tuple[int, int]:
    """Layers where I(E;D|token) or I(E;D|pair) was tested, and where it has p < 0.05."""
    p = np.asarray(info[f"i_expert_domain_given_{given}_p"], np.float64)
    return int(np.isfinite(p).sum()), int((p < Q_LEVEL).sum())


def _several_domains(info: Frame) -> bool:
    """With one domain the quantities about domains are 0 as counted."""
    return bool((info["i_expert_domain_raw"] > 0).any())


def meaning(info: Frame) -> str:
    """What the quantities say about this model, and no more; empty without them.

    Beyond the current token is not beyond its neighbours: a router of two tokens knows no domain.
    """
    if not len(info) or not _several_domains(info):
        return ""
    layers, passed = _passed(info, "token")
    if not layers:
        return (
            "Whether the experts know the domain beyond the current token was not tested: that "
            "takes token ids that two domains share, and five documents of each."
        )
    if not _more_than_chance(layers, passed):
        return (
            "So nothing here shows that the experts know the domain beyond the current token alone."
        )
    layers, passed = _passed(info, "pair")
    basis = f"{percent(float(np.mean(info['shared_pairs'])))} of the tokens share theirs"
    told = "So the same token goes to other experts in another domain"
    if not layers:
        return (
            f"{told}. Whether the token before it explains that was not tested, for want of pairs "
            f"of neighbours that two domains share ({basis})."
        )
    if _more_than_chance(layers, passed):
        return (
            f"{told}, and so do the same two neighbouring tokens (p < 0.05 in {passed} of "
            f"{counted(layers, 'layer')}; {basis} with another domain): neither the current "
            "token nor it and the one before explain all that the experts tell about the domain."
        )
    return (
        f"{told}, but where the token before it is the same too, no difference is shown (p < 0.05 "
        f"in {passed} of {counted(layers, 'layer')}; {basis} with another domain): it may be the "
        "neighbouring token that the experts follow, and not the domain."
    )


def _more_than_chance(layers: int, passed: int) -> bool:
    return passed * 2 > layers or passed > max(1, round(0.15 * layers))


def _evenness(tables: dict[str, Frame]) -> str:
    rows = tables["balance"].where(domain=ALL)
    if not len(rows):
        return ""
    worst = int(np.argmax(rows["cv"]))
    dead = rows["dead_share"][worst]
    tail = (
        f", and {percent(dead)} of its experts get less than 0.1 % of the work each"
        if dead > 0
        else ""
    )
    return (
        f"Load is least even in layer {rows['layer'][worst]}: a coefficient of variation of "
        f"{times(float(rows['cv'][worst]))}, where even random routing gives "
        f"{times(float(rows['cv_chance'][worst]))}{tail}."
    )


def _caveat(view: dict[str, Any], facts: dict[str, Any]) -> str:
    parts = []
    few = min((d["documents"] for d in facts["domains"] if d["documents"]), default=0)
    if not facts["documents"]:
        parts.append("documents are not known, so nothing here has an interval or a test")
    elif few < FEW_DOCUMENTS:
        parts.append(f"the smallest domain has only {counted(few, 'document')}")
    if bad := badly_predicted(view["loss"]):
        name, loss, unigram = max(bad, key=lambda row: row[1] - row[2])
        how = "worse" if loss > unigram else "hardly better"
        parts.append(
            f"the model predicts some of this text {how} than token frequencies do "
            f"({name}: {loss:.1f} against {unigram:.1f} nats)"
        )
    parts.append(
        "choosing an expert is not the same as needing it: only removing experts shows what they do"
    )
    return "Keep in mind: " + "; ".join(parts) + "."


def _known(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _special_title(special: dict[str, Any]) -> str:
    if not special["tested"]:
        return "Specialization was not tested"
    if not special["passed"]:
        return f"None of {number(special['tested'])} cells passes q < 0.05"
    counts = f"{number(special['passed'])} of {number(special['tested'])}"
    return f"{counts} cells differ from the other domains"


def _information_title(info: Frame) -> str:
    if not len(info):
        return "Domain or token: no single tokens were kept"
    token, domain, beyond, _ = _means(info)
    return (
        f"Bits about the token {bits(token)}, about the domain {bits(domain)}, "
        f"about the domain beyond the current token {_known_bits(beyond)}"
    )


def _bands_title(frame: Frame) -> str:
    bands = frame.where(domain=ALL)
    if len(bands) < 2:
        return "Too few layers to compare depths"
    parts = []
    if np.nansum(bands["specialized_share"]) > 0:
        parts.append(("specialised cells", "specialized_share"))
    if np.isfinite(bands["first"]).any():
        parts.append(("neighbours with the same first choice", "first"))
    else:
        parts.append(("unevenness of load", "cv"))
    texts = []
    for name, column in parts:
        first, last = map(times if column == "cv" else percent, bands[column][[0, -1]].tolist())
        texts.append(f"{name} {first} → {last}")
    return f"From {bands['band'][0]} to {bands['band'][-1]} layers: {', '.join(texts)}"


def _balance_title(frame: Frame) -> str:
    rows = frame.where(domain=ALL)
    if not len(rows):
        return "Balance"
    low, high, chance = map(times, (*_ends(rows["cv"]), float(rows["cv_chance"].mean())))
    return f"Load varies by a CV of {low} to {high} (even random routing: {chance})"


def _ends(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _decisive_title(frame: Frame) -> str:
    rows = frame.where(domain=ALL)
    if not len(rows):
        return "Decisiveness"
    low, high = _ends(rows["router_entropy"])
    return f"Router entropy between {low:.2f} and {high:.2f} of its maximum"


def _repetition_title(frame: Frame) -> str:
    rows = frame.where(domain=ALL)
    if not len(rows):
        return "Repetition"
    known = np.isfinite(rows["first"]).any()
    names = ("first", "first_by_load") if known else ("any", "any_chance")
    share, chance = (percent(float(rows[name].mean())) for name in names)
    if not known:
        return f"Neighbours share any expert in {share} of pairs; even chance gives {chance}"
    return (
        f"Neighbours share their first expert in {share} of pairs; uneven load alone gives {chance}"
    )


def _vocabulary_title(frame: Frame) -> str:
    if not frame.columns:  # an imported run may not know of tokens
        return "Experts and words"
    rows = frame.where(kind="input")
    if not len(rows) or not np.isfinite(rows["excess"]).any():
        return "Too few repeated tokens to measure"
    excess = f"{np.nanmean(rows['excess']):.2f}"
    return f"Input tokens belong to single experts by {excess} on a scale from 0 (chance) to 1"
