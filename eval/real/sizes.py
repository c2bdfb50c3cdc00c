"""How large the study is: what a size counts, and about how long its pieces take on one core of the machine that it was planned on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """One size. Counts are those of each domain, or of each merge."""

    about: str
    generated: int  # training problems of the generators, beside the real ones
    questions: int  # for validation, and as many for the test, of the generators' problems
    sft_steps: int
    sft_batch: int
    rlvr_steps: int  # 0: the experts are those of sft
    rlvr_prompts: int  # a step, each answered `generations` times
    generations: int
    merge_steps: int
    merge_batch: int
    rates: tuple[float, ...]  # learning rates that are tried for every trained method, on seed 0
    seeds: int
    limit: int  # test questions of each benchmark
    tune: int  # validation questions for a static merge's coefficients, and for a learning rate
    max_new_tokens: int = 64
    lora_rank: int = 16


SIZES = {
    "smoke": Size(
        about="minutes; shows that all stages work, and nothing else",
        generated=60, questions=6, sft_steps=2, sft_batch=2, rlvr_steps=0, rlvr_prompts=2, generations=4, merge_steps=1, merge_batch=2,
        rates=(1e-3,), seeds=1, limit=3, tune=2, max_new_tokens=16, lora_rank=4,
    ),
    "small": Size(
        about="an evening on two cores",
        generated=2000, questions=300, sft_steps=60, sft_batch=16, rlvr_steps=12, rlvr_prompts=8, generations=8, merge_steps=15,
        merge_batch=16, rates=(3e-4, 1e-3), seeds=3, limit=150, tune=60,
    ),
    "full": Size(
        about="hours on one GPU, weeks on two cores",
        generated=20000, questions=1000, sft_steps=400, sft_batch=32, rlvr_steps=200, rlvr_prompts=32, generations=8, merge_steps=100,
        merge_batch=64, rates=(1e-4, 3e-4, 1e-3, 2e-3), seeds=3, limit=1000, tune=300, max_new_tokens=128, lora_rank=32,
    ),
}  # fmt: skip

# Tokens a second on one core, float32, SmolLM2-135M: what the plan's times are made of until pieces of this run have been timed.
UPDATE, FORWARD, SAMPLING = 100, 300, 100
PROMPT, RESPONSE = 75, 28  # tokens, mean of both domains
LOADING = 8  # seconds
