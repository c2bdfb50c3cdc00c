"""Rollouts against plain `model.generate`, on the same prompts: time a response token, and how many rows were computed for it.

    python eval/benchmarks/rollout.py

Plain is what most people would write: one call of Transformers' generate() with its own sampling, every row computed until the last has
ended. Ours draws each row from its own random numbers and drops rows as soon as a share of them has ended; the shares tried say which
one `distill/decoding.py` should use. Two models: the embedded default (NF4, its own prompts, lengths as they come), and a random one of
SmolLM2-135M's shape (float32) in which one token in 48 ends a response, as far as the limit lets it. Sampling differs, and with it the
answers, but not their distribution; times are therefore divided by response tokens. The methods take turns, batch by batch. Writes
eval/results/rollout.json.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gopd_merge.artefacts import environment
from gopd_merge.config import make_config
from gopd_merge.distill.backbone import REFERENCE, Backbone
from gopd_merge.distill.rollout import encode, generate, row_seeds
from gopd_merge.experts.base import Base, load_base, load_tokenizer
from gopd_merge.plan import read_inputs

OUTPUT = Path("eval/results/rollout.json")
BASE = "adapters/tiny-base"
EXPERTS = {"math": "adapters/math.lora", "code": "adapters/code.lora"}
SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
LIMIT = 96  # response tokens
SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
VOCABULARY = 49_152
LAST = 48  # one token in so many ends a response of the random model


def embedded() -> Backbone:
    """The base as a merge loads it."""
    return Backbone(*load_base(Base(BASE, BASE), "nf4", "cpu"), [])


def random_model() -> Backbone:
    """Random weights of the larger shape. Their distribution is all but flat, so the share of end tokens is their probability."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, vocab_size=VOCABULARY, tie_word_embeddings=True)
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = list(range(0, VOCABULARY, LAST))
    return Backbone(model, load_tokenizer(Base(BASE, BASE)), [])


CASES: dict[str, Callable[[], Backbone]] = {"embedded, 0.9 M, NF4": embedded, "random, 135 M, float32": random_model}


def ours(backbone: Backbone, prompts: list[str], batch: int) -> int:
    """Response tokens of one batch."""
    return generate(backbone, REFERENCE, prompts, ["-"] * len(prompts), LIMIT, row_seeds(batch, count=len(prompts))).num_tokens


def plain(backbone: Backbone, prompts: list[str], batch: int) -> int:
    """The same from one call."""
    torch.manual_seed(batch)
    ids, mask = encode(backbone, prompts)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": LIMIT}
    pad = backbone.tokenizer.pad_token_id
    with torch.no_grad():
        out = backbone.model.generate(input_ids=ids, attention_mask=mask, pad_token_id=pad, **options)[:, ids.shape[1] :]
    stored = backbone.model.generation_config.eos_token_id
    ends = torch.isin(out, torch.tensor(stored if isinstance(stored, list) else [stored]))
    return int(((ends.cumsum(1) - ends.long()) == 0).sum())


@contextmanager
def counting(backbone: Backbone, counted: list[int]) -> Any:
    """Rows times tokens of every pass inside the block, prompts apart."""
    decoder = backbone.model.get_decoder()
    handle = decoder.register_forward_hook(lambda module, inputs, output: counted.append(output[0].shape[0] * (output[0].shape[1] == 1)))
    yield
    handle.remove()


def methods() -> dict[str, tuple[Callable[..., int], float | None]]:
    """By name: who samples, and the share of ended rows at which they are dropped."""
    dropping = {f"ours, {round(1 / share)}th": (ours, share) for share in SHARES}
    return {"plain": (plain, None), "ours, none dropped": (ours, 2.0), **dropping}


def measure(name: str, batches: int, batch_size: int) -> dict[str, Any]:
    """One model: all methods on the same prompts."""
    backbone = CASES[name]()
    sets = read_inputs(make_config({"experts": EXPERTS, "eval": False})).prompts
    pool = [prompt.prompt for pair in zip(*(one.prompts for one in sets), strict=False) for prompt in pair]
    found: dict[str, dict[str, list[float]]] = {method: {"seconds": [], "tokens": [], "rows": []} for method in methods()}
    ours(backbone, pool[:batch_size], 0)  # warms up
    for batch in range(batches):
        prompts = pool[batch * batch_size : (batch + 1) * batch_size]
        order = list(methods().items())
        for method, (sample, share) in order[batch % len(order) :] + order[: batch % len(order)]:
            rows: list[int] = []
            with patch("gopd_merge.distill.decoding.ENDED", share), counting(backbone, rows):
                started = time.perf_counter()
                tokens = sample(backbone, prompts, batch)
                found[method]["seconds"].append(time.perf_counter() - started)
            found[method]["tokens"].append(tokens)
            found[method]["rows"].append(sum(rows))
    per_token = {m: [s / t for s, t in zip(one["seconds"], one["tokens"], strict=True)] for m, one in found.items()}
    return {
        "case": name,
        "batches": batches,
        "batch_size": batch_size,
        "limit": LIMIT,
        "methods": [
            {
                "method": method,
                "milliseconds_per_token": round(1000 * sum(one["seconds"]) / sum(one["tokens"]), 4),
                "rows_per_token": round(sum(one["rows"]) / sum(one["tokens"]), 4),
                "mean_length": round(sum(one["tokens"]) / batches / batch_size, 2),
                "times_plain": round(median(p / o for p, o in zip(per_token["plain"], per_token[method], strict=True)), 3),
                "times_plain_of_each_batch": [round(p / o, 3) for p, o in zip(per_token["plain"], per_token[method], strict=True)],
            }
            for method, one in found.items()
        ],
    }


def main(case: list[str], batches: int, batch_size: int, output: Path) -> None:
    rows = [measure(name, batches, batch_size) for name in case]
    document = {"schema": 1, "command": " ".join(["python", *sys.argv]), "rows": rows, "environment": environment(torch.device("cpu"))}
    output.write_text(json.dumps(document, indent=1) + "\n")
    for row in rows:
        for one in row["methods"]:
            print(row["case"], {k: v for k, v in one.items() if k != "times_plain_of_each_batch"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="*", default=list(CASES))
    parser.add_argument("--batches", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    main(**vars(parser.parse_args()))
