"""moescope: the workbench for the experts inside Mixture-of-Experts language models.

The main job::

    from moescope import analyze, open_run

    done = analyze("allenai/OLMoE-1B-7B-0924", "texts/", "my-run")
    done.report                                      # my-run/report.html
    open_run("my-run").table("load").to_pandas()     # every figure behind it

Names are resolved when first used, so that importing moescope is quick.
"""

from __future__ import annotations

from typing import Any

from moescope.lazy import lazily

__version__: str

_WHERE = {
    "Analysis": "moescope.jobs",
    "AnalyzedRun": "moescope.metrics.runs",
    "Column": "moescope.metrics.table",
    "CorpusSpec": "moescope.corpus",
    "Edit": "moescope.intervene",
    "ExpertRef": "moescope.axes",
    "LoadedModel": "moescope.models",
    "ModelSpec": "moescope.models",
    "MoescopeError": "moescope.errors",
    "Plan": "moescope.plan",
    "ProfileOptions": "moescope.profiles.profile",
    "SimilarityOptions": "moescope.similarity.compare",
    "TraceOptions": "moescope.run.options",
    "analyze": "moescope.jobs",
    "bias": "moescope.intervene",
    "build_report": "moescope.report.report_page",
    "compare_experts": "moescope.similarity.compare",
    "compare_routes": "moescope.trace.routes",
    "compare_runs": "moescope.metrics.runs",
    "confirm_experts": "moescope.adapt.confirm",
    "contrast": "moescope.intervene.contrast.compare",
    "edited": "moescope.intervene",
    "force": "moescope.intervene",
    "import_traces": "moescope.trace.importers",
    "load_meta": "moescope.models",
    "load_model": "moescope.models",
    "mask": "moescope.intervene",
    "measure_damage": "moescope.intervene",
    "merge_runs": "moescope.run.merge",
    "open_corpus": "moescope.corpus",
    "open_model": "moescope.models",
    "open_run": "moescope.metrics.runs",
    "parse_experts": "moescope.intervene",
    "profile_all": "moescope.profiles.profile",
    "profile_expert": "moescope.profiles.profile",
    "profile_experts": "moescope.profiles.profile",
    "route": "moescope.trace.routes",
    "run_demo": "moescope.demo",
    "scale": "moescope.intervene",
    "select_experts": "moescope.adapt.select",
    "steer": "moescope.intervene",
    "sweep": "moescope.intervene",
    "sweep_experts": "moescope.intervene",
    "table": "moescope.metrics.table",
    "top_k": "moescope.intervene",
    "train": "moescope.jobs",
    "wrap_model": "moescope.models",
    "write_figures": "moescope.report.figures",
    "zero": "moescope.intervene",
}

__all__ = ["__version__", *sorted(_WHERE)]

_find = lazily(__name__, _WHERE)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("moescope")
    return _find(name)


def __dir__() -> list[str]:
    return __all__
