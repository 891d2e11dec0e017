"""Runs from what serving engines captured: routed-expert ids of vLLM, SGLang and llama.cpp.

Engines return which experts each token took, and nothing else: no weights, no probabilities. Their
recorders log even less, sums by layer and expert. An import writes the same run folder as a trace;
what ids or sums alone cannot say is absent from it.
"""

from moescope.trace.importers.record import ENGINES, import_traces

__all__ = ["ENGINES", "import_traces"]
