"""A promise of memory is kept on a text of some ten thousand tokens, by the peak of the process."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, OlmoeConfig

from moescope.demo import MODEL

PROGRAM = """
import json, re, sys
from pathlib import Path
from moescope.corpus import CorpusSpec
from moescope.models import ModelSpec, open_model
from moescope.run.options import TraceOptions
from moescope.trace import trace
model, text, run, memory = sys.argv[1:]
loaded = open_model(ModelSpec(model), engine="streamed", memory=memory, window=512)
trace(loaded, CorpusSpec(path=text), Path(run), TraceOptions(context=512))
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps({"peak": int(peak[1]) * 1024, "dtype": loaded.dtype}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")
def test_the_peak_stays_within_the_promise(tmp_path: Path) -> None:
    """Eight layers of 64 experts in bfloat16, 40,000 tokens, 1 GB; unbounded it took 1.86 GB."""
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=8192, hidden_size=256, intermediate_size=128, num_attention_heads=4,
        num_hidden_layers=8, num_experts=64, num_experts_per_tok=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, dtype="bfloat16",
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    rng = np.random.default_rng(0)
    with (tmp_path / "t.jsonl").open("w", encoding="utf-8") as file:
        for n in range(80):
            text = tokenizer.decode(rng.integers(300, 8000, 500).tolist())
            file.write(json.dumps({"domain": f"d{n % 4}", "text": text}) + "\n")
    places = [str(tmp_path / name) for name in ("m", "t.jsonl", "run")]
    command = [sys.executable, "-c", PROGRAM, *places, "1GB"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["peak"] < 1.05e9
