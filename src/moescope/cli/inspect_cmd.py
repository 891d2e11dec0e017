"""`moescope inspect`: the anatomy of a model from its config alone."""

from __future__ import annotations

import pyarrow as pa

from moescope.cli.fit import Head
from moescope.cli.settings import ColumnsArgs, MetaArgs
from moescope.cli.tables import print_table, write_json
from moescope.cli.terminal import errors, output
from moescope.cli.verb import verb
from moescope.words import counted

_HEADS = {
    h.name: h
    for h in (
        Head("layer", key=True), Head("experts", keep=True), Head("top_k", keep=True),
        Head("scoring", "name"), Head("expert_params"), Head("expert_width"), Head("shared"),
        Head("normalized"), Head("selection_bias"), Head("router", "name"),
    )
}  # fmt: skip


class InspectArgs(MetaArgs, ColumnsArgs):
    """Everything that `inspect` can be told."""


@verb()
def inspect(settings: InspectArgs) -> None:
    """Show routers, experts and parameters of a model; reads no weights.

    Example: moescope inspect allenai/OLMoE-1B-7B-0924
    """
    settings.require_columns(_HEADS)
    from moescope.models import load_meta

    anatomy, form = load_meta(settings.model_spec()), settings.format
    rows = [
        {
            "layer": m.layer_idx,
            "experts": m.num_experts,
            "top_k": m.top_k,
            "expert_width": m.expert_hidden_size,
            "shared": len(m.site.shared),
            "scoring": m.scoring,
            "normalized": m.normalized,
            "selection_bias": m.selection_bias,
            "router": m.site.router,
            "expert_params": round(m.expert_params),
        }
        for m in anatomy.layers
    ]
    summary = {
        "model_type": anatomy.model_type,
        "decoder_layers": anatomy.num_decoder_layers,
        "moe_layers": len(anatomy.layers),
        "total_params": anatomy.total_params,
        "active_params": anatomy.active_params,
    }
    if form == "json":
        write_json({**summary, "layers": rows})
        return
    title = f"{settings.model} ({anatomy.model_type})"
    print_table(pa.Table.from_pylist(rows), settings, title, _HEADS)
    stream = errors if form == "csv" else output
    share = anatomy.active_params / anatomy.total_params
    stream.print(
        f"{counted(len(anatomy.layers), 'MoE layer')} of "
        f"{counted(anatomy.num_decoder_layers, 'decoder layer')} · "
        f"{_billions(anatomy.total_params)} parameters, of which a token meets "
        f"{_billions(anatomy.active_params)} ({share:.0%})"
    )


def _billions(count: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3f} {unit}"
    return str(count)
