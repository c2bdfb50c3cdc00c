"""What a merge can reach: accuracy of the target q ∝ teacher^α · reference^(1−α) itself, sampled without any student.

    python eval/target_probe.py

Expert and base run as two rows of one mixed batch, and their logits are mixed at every token. Writes eval/results/target_probe.json.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from gopd_merge import MergeConfig
from gopd_merge.artefacts import environment
from gopd_merge.distill.backbone import REFERENCE, Backbone, expert
from gopd_merge.distill.rollout import Answers, encode
from gopd_merge.distillation import load_backbone
from gopd_merge.evaluate.answers import AnswerFile
from gopd_merge.evaluate.statistics import scores_of, summarise
from gopd_merge.evaluate.tasks import ask
from gopd_merge.plan import read_inputs

ALPHAS = (0.0, 0.5, 1.0, 1.25, 1.5, 2.0, 3.0)


class Mixture(LogitsProcessor):
    """(2B, V) logits, B rows of the teacher and then B of the reference, to α·teacher + (1−α)·reference in both halves.

    The same Gumbel noise is added to both, so that greedy decoding samples from the mixture, the same token in both halves.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        teacher, reference = scores.chunk(2)
        noise = -torch.empty_like(teacher).exponential_().log()
        return (self.alpha * teacher + (1 - self.alpha) * reference + noise).repeat(2, 1)


@torch.no_grad()
def sample_target(backbone: Backbone, domain: str, alpha: float, prompts: list[str], max_new_tokens: int) -> Answers:
    ids, mask = encode(backbone, [*prompts, *prompts])  # (2B, P)
    tokenizer = backbone.tokenizer
    config = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    out = backbone.peft.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        logits_processor=LogitsProcessorList([Mixture(alpha)]),
        adapter_names=[expert(domain)] * len(prompts) + [REFERENCE] * len(prompts),
    )
    response = out[: len(prompts), ids.shape[1] :]  # (B, T)
    ended = (response == tokenizer.eos_token_id).any(1)
    lengths = (response != tokenizer.pad_token_id).sum(1)
    return Answers(tuple(tokenizer.batch_decode(response, skip_special_tokens=True)), tuple(lengths.tolist()), tuple((~ended).tolist()))


def main(seed: int, output: Path) -> None:
    experts = {domain: f"adapters/{domain}.lora" for domain in ("math", "code")}
    config = MergeConfig(experts=experts, output=Path("unused.lora"), eval_prompts=2500)
    inputs = read_inputs(config)
    backbone = load_backbone(config, inputs)
    results = []
    for benchmark in inputs.test:
        for alpha in ALPHAS:

            def respond(prompts, domain=benchmark.domain, alpha=alpha):
                return sample_target(backbone, domain, alpha, list(prompts), config.max_new_tokens), None

            with TemporaryDirectory() as folder:
                header = {"questions": len(benchmark.items), "samples": 1}
                answers = ask(benchmark, respond, AnswerFile(Path(folder) / "answers.jsonl", header, 250), seed, 250)
            estimate = summarise(scores_of([answer.id for answer in answers], [answer.score for answer in answers]))
            results.append({"domain": benchmark.domain, "alpha": alpha, "seed": seed, "temperature": 1.0, **asdict(estimate)})
            print(f"{benchmark.domain} α = {alpha:g}: {estimate.score:.4f} ({estimate.low:.4f}–{estimate.high:.4f})", flush=True)
    document = {
        "schema": 1,
        "command": " ".join(["python", *sys.argv]),
        "results": results,
        "environment": environment(backbone.device),
    }
    output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("eval/results/target_probe.json"))
    main(**vars(parser.parse_args()))
