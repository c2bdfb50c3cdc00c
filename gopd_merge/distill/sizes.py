"""What decides how much a step holds and a run writes. No torch."""

from dataclasses import dataclass

PROBED_TOKENS = 8  # of each response, spread evenly, that scoring projects: enough for the step's mean reward, little to project
CACHED_BLOCK = 4 << 20  # bytes of logits that are worked on at once on a CPU
LARGE_BLOCK = 32 << 20  # on other devices, which need more at once to be busy
NF4_BLOCK, NF4_OUTER_BLOCK = 64, 256  # values per scale, and scales per scale of the scales (double quantisation)
KEPT_CHECKPOINTS = 2  # the last ones


@dataclass(frozen=True)
class Sizes:
    """What decides how much memory a step takes, besides the model. Every response is taken to reach its limit."""

    batch_size: int
    micro_batch_size: int
    chunk_tokens: int
    prompt_tokens: int  # of the longest prompt
    max_new_tokens: int


def nf4_bytes(values: int) -> int:
    """Two values a byte, one byte a block for its scale, and one float32 for every 256 of those."""
    blocks = -(-values // NF4_BLOCK)
    return values // 2 + blocks + 4 * -(-blocks // NF4_OUTER_BLOCK)
