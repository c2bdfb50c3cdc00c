"""The live view of a merge on stderr: inputs, a progress bar, what is being measured. No torch.

Without a terminal there is no bar and no colour; a line every tenth of the steps says how far it is.
"""

from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from gopd_merge.report.terminal import byte_text, columns


class Silent:
    """Says nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def started(self, config: Any, inputs: Any) -> None: ...
    def planned(self, forecast: Any) -> None: ...
    def phase(self, text: str) -> None: ...
    def step(self, step: int, steps: int, metrics: Mapping[str, Any]) -> None: ...
    def evaluating(self, done: float, total: int, method: str) -> None: ...
    def note(self, text: str) -> None: ...


class Progress(Silent):
    """Draws on stderr."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar = Bar(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[detail]}"), TimeRemainingColumn(),
            console=self._console, disable=not self._console.is_terminal, transient=True,
        )  # fmt: skip
        self._task: Any = None
        self._measured = ""  # what the last line said, where there is no bar

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def started(self, config: Any, inputs: Any) -> None:
        rows = [
            [e.domain, f"rank {e.rank}", ",".join(t.removesuffix("_proj") for t in e.targets), f"sha256 {e.sha256[:8]}"]
            for e in inputs.experts
        ]
        rows += [[domain, location, "", ""] for domain, location in inputs.remote.items()]
        self._print(columns([["experts" if i == 0 else "", *row] for i, row in enumerate(rows)]))
        precision = "NF4" if config.quantize == "nf4" else "full precision"
        if inputs.teacher_base:
            self._print(f"teachers {inputs.teacher_base.name}, {precision}, with the experts; student on {inputs.base.name}")
        else:
            self._print(f"base     {inputs.base.name}, {precision}, once in memory; reference: the same, adapters off")
        counts = [f"{s.domain} {s.size:,}" + ("" if s.origin.source == "own" else f" of {s.origin.source}") for s in inputs.prompts]
        self._print("prompts  " + " · ".join(counts))
        alpha = config.alpha
        alphas = ", ".join(f"{d} {a:g}" for d, a in sorted(alpha.items())) if isinstance(alpha, dict) else str(alpha)
        begun = "fresh" if config.start == "none" else f"begun at {config.start}"
        self._print(
            f"plan     {config.steps} steps × {config.batch_size} prompts, α = {alphas}; student: LoRA, {begun}, rank {inputs.lora_rank}"
        )
        if config.rollout != "hf":
            self._print(f"rollout  {config.rollout}")
        if config.method != "exopd" or config.changes:
            changes = [f"--{name.replace('_', '-')} {value}" for name, value in config.changes.items()]
            self._print("method   " + " ".join([config.method, *changes]))

    def planned(self, forecast: Any) -> None:
        tight = ": freed blocks are returned at once, which takes time" if forecast.is_tight else ""
        self._print(f"memory   {byte_text(forecast.memory.peak)} needed, {byte_text(forecast.limit)} free{tight}")

    def phase(self, text: str) -> None:
        self._print(text)

    def note(self, text: str) -> None:
        self._print(f"note     {text}")

    def step(self, step: int, steps: int, metrics: Mapping[str, Any]) -> None:
        gaps = [f"{d} {m['kl_to_target']:.4f}" for d, m in metrics["domains"].items() if m["kl_to_target"] is not None]
        detail = "KL to target " + " · ".join(gaps) if gaps else "KL to target unknown"
        rewards = [f"{d} {m['reward']:+.3f}" for d, m in metrics["domains"].items() if m["reward"] is not None]
        detail += (", reward " + " · ".join(rewards) if rewards else "") + f", {metrics['tokens_per_second']:,.0f} tokens/s"
        self._advance("merging", step, steps, detail)
        if not self._console.is_terminal and (step == steps or step % max(1, steps // 10) == 0):
            self._print(f"step {step}/{steps}  {detail}")

    def evaluating(self, done: float, total: int, method: str) -> None:
        self._advance("measuring", done, total, method)
        if not self._console.is_terminal and method != self._measured:
            self._print(f"measuring {int(done) + 1}/{total}: {method}")
            self._measured = method

    def _advance(self, phase: str, done: float, total: int, detail: str) -> None:
        if self._task is None or self._bar.tasks[-1].description != phase:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(phase, total=total, detail="")
        self._bar.update(self._task, completed=done, detail=detail)

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False)
