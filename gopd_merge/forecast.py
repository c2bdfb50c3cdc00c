"""What a run will take: memory by part, disk, and the options with which it fits. No weights are loaded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gopd_merge.config import VLLM, MergeConfig
from gopd_merge.disk import room_for
from gopd_merge.distill.counted import Counted, is_countable
from gopd_merge.distill.methods import ANSWERED_BY, LEARNT_BY_HEART
from gopd_merge.distill.sizes import KEPT_CHECKPOINTS, Sizes
from gopd_merge.errors import InputError, NotEstimatedError
from gopd_merge.experts.base import Base
from gopd_merge.experts.decoder import read_decoder
from gopd_merge.experts.intake import Expert
from gopd_merge.machine import free_memory, program_memory, resolve_device
from gopd_merge.parallel import ALONE, Processes
from gopd_merge.plan import Inputs
from gopd_merge.report.terminal import byte_text
from gopd_merge.server import is_remote
from gopd_merge.workload import count_work

if TYPE_CHECKING:
    from gopd_merge.distill.footprint import Footprint

    AnyFootprint = Counted | Footprint

ENGINE = 2 << 30  # bytes of vLLM's own two processes on a CPU, before they hold anything: an allowance
GRADERS = 110 << 20  # bytes of the libraries that are imported when the first answer is graded, as seen on CPython 3.11
HEAP_KEEPS = 3.0  # times the need: what a process was seen to hold at most (eval/results/memory.json)
SMALLEST_CHUNK = 64  # tokens


@dataclass(frozen=True)
class Memory:
    """Bytes by part. The phases come one after the other, on top of what is always there."""

    program: int  # interpreter and libraries; on a GPU the CUDA context
    base: int
    experts: int
    student: int
    optimizer: int  # two numbers for each trained parameter
    engine: int = 0  # vLLM in processes of its own, where it is on a CPU; on a GPU it sleeps but for the rollout
    phases: Mapping[str, int] = field(default_factory=dict)

    @property
    def always(self) -> int:
        """What is there in every phase."""
        return self.program + self.base + self.experts + self.student + self.optimizer + self.engine

    @property
    def peak(self) -> int:
        """Of the whole run."""
        return self.always + max(self.phases.values())

    @property
    def peak_phase(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda name: self.phases[name])

    def document(self) -> dict[str, Any]:
        """As `--json` has it."""
        return asdict(self) | {"peak": self.peak, "peak_phase": self.peak_phase}


@dataclass(frozen=True)
class Disk:
    """Bytes of what the run writes in the output's folder, but for answers and logs."""

    checkpoint: int  # the student and two numbers of the optimiser for each of its own
    peak: int  # the student, all checkpoints that there are at once, and one that is being written
    free: int


class Forecast:
    """The plan of one run; of several processes, of the first. Raises InputError for a prompt that the base's context cannot hold."""

    def __init__(self, config: MergeConfig, inputs: Inputs, processes: Processes = ALONE) -> None:
        self.config = config
        self.inputs = inputs
        self.processes = processes
        self.device = resolve_device(config.device)
        sharing = processes.local_count if self.device == "cpu" else 1  # a GPU is one process's
        self.limit = int(config.memory) if config.memory else free_memory(self.device) // sharing
        self.work = count_work(config, inputs)
        self._footprints: dict[str, AnyFootprint] = {}
        self._other_footprints: dict[str, list[AnyFootprint]] = {}

    @cached_property
    def memory(self) -> Memory:
        """With the options as they are."""
        return self.memory_with(self.config)

    @property
    def fits(self) -> bool:
        """Whether it stays within the limit."""
        return self.memory.peak <= self.limit

    @cached_property
    def disk(self) -> Disk:
        """With the options as they are."""
        config, student = self.config, self.memory.student
        checkpoint = student + self.memory.optimizer
        written = -(-config.steps // config.checkpoint_every)
        kept = written if config.keep_checkpoints else min(written, KEPT_CHECKPOINTS + 1)
        return Disk(checkpoint, student + kept * checkpoint, room_for(config.output))

    @cached_property
    def way_out(self) -> dict[str, Any] | None:
        """Options with which it fits, those that leave the result alone first. Empty if it fits; None where nothing helps."""
        if self.fits:
            return {}
        for ladder in smaller_runs(self.config):
            smallest = self.config.model_copy(update=ladder[-1])
            if self._without_phases(smallest.quantize).always > self.limit or self.memory_with(smallest).peak > self.limit:
                continue
            low, high = 0, len(ladder) - 1  # memory falls from rung to rung: find the first that fits
            while low < high:
                middle = (low + high) // 2
                fits = self.memory_with(self.config.model_copy(update=ladder[middle])).peak <= self.limit
                low, high = (low, middle) if fits else (middle + 1, high)
            return ladder[low]
        return None

    @property
    def is_tight(self) -> bool:
        """Whether a heap that keeps what was freed may not fit: on a CPU that can be far more than is needed at once."""
        return self.device == "cpu" and self.limit < HEAP_KEEPS * self.memory.peak

    def document(self) -> dict[str, Any]:
        """What `gopd-merge plan --json` prints; `seconds` is null until it is measured."""
        config, inputs = self.config, self.inputs
        return {
            "schema": 1,
            "experts": {
                e.domain: {"name": e.name, "commit": e.commit, "sha256": e.sha256, "rank": e.rank, "targets": list(e.targets)}
                for e in inputs.experts
            }
            | {d: {"name": where, "commit": None, "sha256": None, "rank": None, "targets": []} for d, where in inputs.remote.items()},
            "base": {
                "name": inputs.base.name,
                "commit": inputs.base.commit,
                "quantization": config.quantize,
                "parameters": self._footprint(config.quantize).parameters,
            },
            "teacher_base": self._described_teacher_base(),
            "student": {"rank": inputs.lora_rank, "targets": list(inputs.targets)},
            "warnings": list(inputs.notes),
            "work": asdict(self.work) | {"batch_size": config.batch_size, "processes": self.processes.count},
            "memory": self.memory.document() | {"device": self.device, "limit": self.limit, "fits": self.fits, "tight": self.is_tight},
            "disk": asdict(self.disk),
            "options": {name: getattr(config, name) for name in ("micro_batch_size", "chunk_tokens", "batch_size", "max_new_tokens")},
            "way_out": self.way_out,
            "seconds": None,
        }

    def _described_teacher_base(self) -> dict[str, Any] | None:
        base = self.inputs.teacher_base
        if base is None:
            return None
        return {"name": base.name, "commit": base.commit, "parameters": self._others(self.config.quantize)[0].parameters}

    def check(self) -> None:
        """Raises InputError, with the options that help, for a run that cannot fit into memory or on the disk."""
        if self.disk.peak > self.disk.free:
            raise InputError(
                f"{self.config.output}: the run writes about {byte_text(self.disk.peak)} there, more than the {byte_text(self.disk.free)} "
                f"that are free; make room, choose another --output, or lower --lora-rank (now {self.inputs.lora_rank})"
            )
        if self.fits:
            return
        there = "that --memory allows" if self.config.memory else f"that are free on the {'GPU' if self.device == 'cuda' else 'machine'}"
        problem = (
            f"the run needs about {byte_text(self.memory.peak)} ({self.memory.peak_phase}), more than the {byte_text(self.limit)} {there}"
        )
        if self.way_out is None:
            raise InputError(
                f"{problem}; no option makes it fit, the base alone takes {byte_text(self.memory.base)}: take a larger machine"
            )
        raise InputError(f"{problem}; it fits with {flags(self.way_out)}")

    def memory_with(self, config: MergeConfig) -> Memory:
        """By part, for other options on the same inputs. Raises NotEstimatedError."""
        try:
            return self._memory_with(config)
        except InputError:
            raise
        except Exception as error:  # a model's own code may not run on tensors without values
            cause = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise NotEstimatedError(
                f"{self.inputs.base.name}: its memory cannot be estimated ({cause}); try one step: --steps 1"
            ) from error

    def _memory_with(self, config: MergeConfig) -> Memory:
        shape = self._footprint(config.quantize)
        memory = self._without_phases(config.quantize)
        own = -(-config.prompts_per_step // self.processes.count)
        sizes = Sizes(
            batch_size=own,
            micro_batch_size=min(config.micro_batch_size, own),
            chunk_tokens=config.chunk_tokens,
            prompt_tokens=self.work.longest_prompt,
            max_new_tokens=config.trained_tokens,
        )
        apart, ratios = config.bound is not None, config.adaptive == "token" or config.deterministic is not None
        answering = [shape, *self._others(config.quantize)] if ANSWERED_BY[config.method] == "experts" else [shape]
        phases = {"rollout": max(one.rollout(sizes) for one in answering)}
        if config.rollout == VLLM and self.device == "cuda":
            phases["rollout"] += shape.base
        elif config.rollout == VLLM:
            memory = replace(memory, engine=ENGINE + shape.weights + phases.pop("rollout"))
        elif is_remote(config.rollout):
            del phases["rollout"]
        if config.method not in LEARNT_BY_HEART:
            phases["score"] = max(one.score(sizes, apart, ratios) for one in (shape, *self._others(config.quantize)))
        phases["update"] = shape.update(sizes, config.estimator, config.top_k, apart, config.activation_checkpointing)
        questions = replace(sizes, batch_size=config.batch_size, max_new_tokens=config.max_new_tokens)  # no horizon, no shares
        if self.work.probed_answers:  # every question is a row of the expert and one of the base
            phases["probe"] = shape.mixture(replace(questions, prompt_tokens=self.work.longest_probed_prompt))
        if self.work.evaluated_answers:
            asked = replace(questions, prompt_tokens=self.work.longest_test_prompt)
            answers = max(one.rollout(asked) for one in (shape, *self._others(config.quantize)))
            phases["evaluate"] = answers + shape.experts + GRADERS  # the exact average is an adapter of the size of the experts
        if self.device == "cpu":  # the file is mapped while it is read
            phases["load"] = self.inputs.base.weight_bytes
        return replace(memory, phases=phases)

    def _without_phases(self, quantize: str) -> Memory:
        shape, others = self._footprint(quantize), self._others(quantize)
        bases, experts = (sum(getattr(one, part) for one in (shape, *others)) for part in ("base", "experts"))
        if self.config.shard_base:  # and while a layer runs, it and the next one whole
            bases -= sum(sum(one.layers) - -(-sum(one.layers) // self.processes.count) - 2 * max(one.layers) for one in (shape, *others))
        copy = shape.student if self.config.start != "none" else 0  # the student as it began
        return Memory(program_memory(self.device), bases, experts + copy, shape.student, optimizer=2 * shape.student)

    def _footprint(self, quantize: str) -> "AnyFootprint":
        if quantize not in self._footprints:
            inputs = self.inputs
            experts = () if inputs.teacher_base else inputs.experts
            self._footprints[quantize] = footprint_of(inputs.base, experts, inputs.lora_rank, inputs.targets, quantize, self.device)
        return self._footprints[quantize]

    def _others(self, quantize: str) -> "list[AnyFootprint]":
        """The models besides the student's base."""
        if quantize not in self._other_footprints:
            self._other_footprints[quantize] = [
                footprint_of(base, experts, 0, (), quantize, self.device) for base, experts in self.inputs.other_models.values()
            ]
        return self._other_footprints[quantize]


def footprint_of(base: Base, experts: Sequence[Expert], rank: int, targets: Sequence[str], quantize: str, device: str) -> "AnyFootprint":
    """What a model with its adapters takes: counted for plain ones, else found by running it without values."""
    decoder = read_decoder(Path(base.location))
    if decoder and is_countable(decoder, experts, targets):
        return Counted(decoder, experts, rank, targets, quantize, device)
    from gopd_merge.distill.footprint import Footprint

    return Footprint(base.location, experts, rank, targets, quantize, device)


def smaller_runs(config: MergeConfig) -> Iterator[list[dict[str, Any]]]:
    """Ladders of options, each rung with less memory: first those that change no result, then each with one more change that does."""
    changes: list[dict[str, Any]] = [{}]
    if not config.activation_checkpointing:
        changes.append({"activation_checkpointing": True})
    if config.quantize == "none":
        changes.append(changes[-1] | {"quantize": "nf4"})
    size = config.batch_size
    while size // 2 >= len(config.experts):
        size //= 2
        changes.append(changes[-1] | {"batch_size": size})
    tokens = config.max_new_tokens
    while tokens // 2 >= 32:
        tokens //= 2
        shorter = {"max_new_tokens": tokens, "horizon": min(config.horizon, tokens)} if config.horizon else {"max_new_tokens": tokens}
        changes.append(changes[-1] | shorter)
    for change in changes:
        ladder = [change] if change else []
        micro, chunk = min(config.micro_batch_size, change.get("batch_size", config.batch_size)), config.chunk_tokens
        while micro > 1:
            micro //= 2
            ladder.append(change | {"micro_batch_size": micro})
        while chunk // 2 >= SMALLEST_CHUNK:
            chunk //= 2
            ladder.append(change | {"micro_batch_size": micro, "chunk_tokens": chunk})
        if ladder:
            yield ladder


def flags(options: Mapping[str, Any]) -> str:
    """As they are written on the command line."""
    given = {name.replace("_", "-"): value for name, value in options.items()}
    return " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in given.items())
