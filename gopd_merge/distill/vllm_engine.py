"""vLLM beside the base that is loaded here: started by this run on the same machine; on a GPU it sleeps while the student learns."""

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from gopd_merge.distill.engines import EngineError, Sampled
from gopd_merge.distill.vllm_server import REQUESTS
from gopd_merge.errors import GopdError, InputError
from gopd_merge.server import lora_room

FREE_SHARE = 0.9  # of what is free on the GPU, which vLLM may take
BLOCK = 128  # tokens: keys and values of a response take whole blocks, at most of this size
BATCHED = 4096  # tokens of prompts that vLLM reads at once on a CPU, or one prompt
SETTINGS = {  # of vLLM's processes; what the user has set stays
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
}
CPU_SETTINGS = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # this process waits meanwhile, so that all of its cores are free
    "TORCH_COMPILE_DISABLE": "1",  # half a minute of compiling for the one function that would be
}


@dataclass(frozen=True)
class Needs:
    """What vLLM has to hold."""

    location: str  # the base's folder
    dtype: torch.dtype  # of its weights that are not quantised
    quantize: str  # nf4 or none
    rank: int  # of the student
    longest: int  # tokens of prompt and response
    responses: int  # of a step
    seed: int


def check_available(rank: int) -> None:
    """Raises InputError where --rollout vllm cannot be had. Nothing is imported."""
    if importlib.util.find_spec("vllm") is None:
        raise InputError('--rollout vllm: vLLM is not installed; pip install "gopd-merge[vllm]", or leave it out')
    if lora_room(rank) is None:
        raise InputError(f"--rollout vllm: takes adapters of rank 512 at most, the student has {rank}; lower --lora-rank, or leave it out")


class VllmHere:
    """vLLM in processes of its own, which end with this one."""

    name = "--rollout vllm"

    def __init__(self, needs: Needs, note: Callable[[str], None]) -> None:
        """Starts it and loads the base there; a minute or so. Raises InputError where it cannot hold this base."""
        self._on_gpu = torch.cuda.is_available()
        note(f"{self.name}: starting vLLM, which takes a minute or so")
        if needs.quantize == "nf4" and not self._on_gpu:
            note(f"{self.name}: on a CPU vLLM holds the base unquantised, so it samples from another student than the one on 4 bits")
        try:
            with _environment(SETTINGS if self._on_gpu else SETTINGS | CPU_SETTINGS):
                from vllm import LLM

                self._llm: Any = LLM(**llm_options(needs, self._on_gpu))
        except GopdError:  # a signal
            raise
        except Exception as error:  # whatever vLLM raises about models, machines and settings
            raise InputError(f"--rollout vllm: vLLM cannot hold {needs.location} ({_cause(error)}); leave it out") from error
        self._request: Any = None
        self._number = 0  # of adapters so far
        self._is_awake = True

    def load(self, adapter: str, folder: Path) -> None:
        """See Sampler."""
        from vllm.lora.request import LoRARequest

        self._number += 1  # vLLM would take a known number for the adapter that had it
        self._request = LoRARequest(adapter, self._number, str(folder))
        with self._errors():
            self._wake()
            self._llm.llm_engine.add_lora(self._request)

    def unload(self, adapter: str) -> None:
        """See Sampler."""
        with suppress(Exception):  # it has died, which the next request will say
            self._llm.llm_engine.remove_lora(self._number)

    def sample(self, adapter: str, prompts: Sequence[list[int]], seeds: Sequence[int], options: dict[str, Any]) -> list[Sampled]:
        """See Sampler."""
        from vllm import SamplingParams

        with self._errors():
            self._wake()
            asked = [SamplingParams(seed=seed, detokenize=False, **options) for seed in seeds]
            assert all(getattr(one, name) == value for one in asked for name, value in options.items())  # nothing was put right
            given = [{"prompt_token_ids": ids} for ids in prompts]
            answers = [out.outputs[0] for out in self._llm.generate(given, asked, lora_request=self._request, use_tqdm=False)]
            self._sleep()
        return [
            Sampled(
                ids=list(answer.token_ids),
                log_probs=[step[token_id].logprob for token_id, step in zip(answer.token_ids, answer.logprobs, strict=True)],
                ended=answer.finish_reason == "stop",
            )
            for answer in answers
        ]

    def close(self) -> None:
        """End its processes."""
        self._llm.llm_engine.engine_core.shutdown()

    def _wake(self) -> None:
        if not self._is_awake:
            torch.cuda.empty_cache()
            self._llm.wake_up()
            self._is_awake = True

    def _sleep(self) -> None:
        if self._on_gpu:
            self._llm.sleep(level=1)  # the weights go to the machine's memory: adapters need the same base again
            self._is_awake = False

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except GopdError:  # a signal
            raise
        except Exception as error:  # whatever vLLM raises
            raise EngineError(f"{self.name}: vLLM failed ({_cause(error)}); see the lines before this one, or leave it out") from error


def llm_options(needs: Needs, on_gpu: bool) -> dict[str, Any]:
    """What vllm.LLM is made with."""
    options = {
        "model": needs.location,
        "dtype": str(needs.dtype).removeprefix("torch."),
        "skip_tokenizer_init": True,  # tokens go in and come out
        "generation_config": "vllm",  # not the base's own cuts and temperature
        "logprobs_mode": "processed_logprobs",  # of the distribution that was drawn from
        "max_model_len": needs.longest,
        "max_num_seqs": min(needs.responses, REQUESTS),
        "kv_cache_memory_bytes": _cache_bytes(needs),
        "enable_lora": True,
        "max_lora_rank": lora_room(needs.rank),
        "seed": needs.seed,
        "use_tqdm_on_load": False,
    }
    if not on_gpu:  # a seeded prompt that is split over steps would end vLLM 0.32 there: it turns back a generator that cannot be
        whole = {"enable_chunked_prefill": False, "max_num_batched_tokens": max(BATCHED, needs.longest)}
        return options | whole | {"enforce_eager": True}
    free, total = torch.cuda.mem_get_info()
    quantised = {"quantization": "bitsandbytes"} if needs.quantize == "nf4" else {}  # NF4 in blocks of 64, as it is here
    return options | quantised | {"enable_sleep_mode": True, "gpu_memory_utilization": FREE_SHARE * free / total}


def _cache_bytes(needs: Needs) -> int:
    """Of keys and values of all responses of a step, and of one block more."""
    config = AutoConfig.from_pretrained(needs.location).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * width * needs.dtype.itemsize
    blocks = min(needs.responses, REQUESTS) * -(-needs.longest // BLOCK) + 1
    return int(blocks * BLOCK * token)


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """The settings for processes that start in the block, and for what is imported in it; then the environment is as it was."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in settings.items() if name not in before})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
