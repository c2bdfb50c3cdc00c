"""Memory that does not last: that part of the step is done again in smaller micro-batches, which changes nothing of it but rounding."""

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

from gopd_merge.errors import GopdError

HALVINGS = 3  # of the micro-batch, in a whole run
Result = TypeVar("Result")


class Room:
    """Halves the micro-batch each time that memory does not last, for the rest of the run."""

    def __init__(self, micro_batch_size: int, chunk_tokens: int, note: Callable[[str], None], again: bool = True) -> None:
        """`micro_batch_size` and `chunk_tokens` are the config's. Without `again` a part that other processes wait in is not done again."""
        self._given, self._chunk_tokens, self._note, self._again = micro_batch_size, chunk_tokens, note, again
        self._halvings = 0

    @property
    def micro_batch_size(self) -> int:
        """As it is now."""
        return max(1, self._given >> self._halvings)

    def fit(self, attempt: Callable[[int], Result]) -> Result:
        """What `attempt` returns for the micro-batch size that lasts. Raises GopdError where none does."""
        while True:
            try:
                return attempt(self.micro_batch_size)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = " ".join(str(error).split())[:160] or type(error).__name__
            if not self._again or self._halvings == HALVINGS or self.micro_batch_size == 1:
                raise GopdError(
                    f"memory does not last, even for micro-batches of {self.micro_batch_size} ({reason}); give the command again with "
                    f"--resume --micro-batch-size {max(1, self.micro_batch_size // 2)} --chunk-tokens {max(1, self._chunk_tokens // 4)}, "
                    "or ask gopd-merge plan --memory what fits"
                )
            self._halvings += 1
            gc.collect()  # only here, outside of the handler, does nothing hold the step's tensors any more
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._note(f"memory did not last ({reason}): going on with micro-batches of {self.micro_batch_size}")

    def state_dict(self) -> dict[str, Any]:
        """A run that goes on does not try again what failed."""
        return {"micro_batch_size": self.micro_batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Unless less was given now."""
        while self.micro_batch_size > max(1, state["micro_batch_size"]) and self._halvings < HALVINGS:
            self._halvings += 1


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on whatever device."""
    failed = isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error)
    return failed or "std::bad_alloc" in str(error)
