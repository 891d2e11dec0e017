"""Text and tokens for the demo model: documents, tokenizer, token streams, batches.

Everything here is a function of the corpora and the seed; it knows nothing of the model.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"


def documents(data: Path, side: str) -> dict[str, list[str]]:
    found = {
        path.stem: [
            json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()
        ]
        for path in sorted((data / side).glob("*.jsonl"))
    }
    if not found:
        raise SystemExit(
            f"error: no {side}/*.jsonl in {data}; run tools/build_corpora.py --out {data} first"
        )
    return found


def make_tokenizer(
    texts: dict[str, list[str]], recipe: dict, folder: Path
) -> PreTrainedTokenizerFast:
    """Byte-level BPE on as many characters from each domain; read back when it exists."""
    if not (folder / "tokenizer.json").exists():
        balanced = []
        for name, docs in texts.items():
            picked = np.random.default_rng([recipe["seed"], len(name)]).permutation(len(docs))
            room = recipe["tokenizer"]["characters_per_domain"]
            for index in picked:
                if room <= 0:
                    break
                balanced.append(docs[index])
                room -= len(docs[index])
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        bpe.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        bpe.train_from_iterator(
            balanced,
            trainers.BpeTrainer(
                vocab_size=recipe["tokenizer"]["vocab_size"],
                special_tokens=[END],
                initial_alphabet=alphabet,
                show_progress=False,
            ),
        )
        fast = PreTrainedTokenizerFast(
            tokenizer_object=bpe,
            eos_token=END,
            pad_token=END,
            clean_up_tokenization_spaces=False,
            model_max_length=recipe["model"]["max_position_embeddings"],
        )
        fast.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def encode(
    texts: dict[str, list[str]], tokenizer: PreTrainedTokenizerFast, cache: Path | None
) -> dict[str, np.ndarray]:
    """Token ids of each domain's documents in order, an end-of-text token after each."""
    streams = {}
    for name, docs in texts.items():
        path = cache / f"{name}.npy" if cache else None
        if path is None or not path.exists():
            batches = tokenizer.backend_tokenizer.encode_batch(docs)
            ids = [
                np.array([*item.ids, tokenizer.eos_token_id], dtype=np.uint16) for item in batches
            ]
            stream = np.concatenate(ids)
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, stream)
            streams[name] = stream
        else:
            streams[name] = np.load(path)
    return streams


class Batches:
    """The batch of a step, a pure function of (seed, step): a resumed run reads on.

    A round deals every domain one window, in shuffled order, over as many steps as it takes; each
    domain is read in an order shuffled anew for every pass, starting at a new offset.
    """

    def __init__(
        self, streams: dict[str, np.ndarray], context: int, per_step: int, seed: int
    ) -> None:
        if len(streams) % per_step:
            raise SystemExit(
                f"error: {len(streams)} domains do not divide into steps of {per_step} sequences"
            )
        self.streams, self.context, self.per_step, self.seed = (
            list(streams.values()),
            context,
            per_step,
            seed,
        )
        self.orders: dict[tuple[int, int], np.ndarray] = {}

    def window(self, domain: int, draw: int) -> np.ndarray:
        """Ids of a domain's next window: `context` tokens to read and one more to predict."""
        stream = self.streams[domain]
        count = (len(stream) - 1) // self.context - 1
        epoch, place = divmod(draw, count)
        if (domain, epoch) not in self.orders:
            rng = np.random.default_rng([self.seed, domain, epoch])
            self.orders[domain, epoch] = rng.permutation(count) * self.context + rng.integers(
                self.context
            )
        start = self.orders[domain, epoch][place]
        return stream[start : start + self.context + 1]

    def __call__(self, step: int) -> torch.Tensor:
        """Token ids, one row a sequence."""
        steps_a_round = len(self.streams) // self.per_step
        dealt, part = divmod(step, steps_a_round)
        order = np.random.default_rng([self.seed, dealt]).permutation(len(self.streams))
        rows = [self.window(domain, dealt) for domain in order[part::steps_a_round]]
        return torch.from_numpy(np.stack(rows).astype(np.int64))
