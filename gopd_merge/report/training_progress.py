"""The live view of a training on stderr, as that of a merge: what it learns from, a bar, each validation. No torch."""

from collections.abc import Mapping
from typing import Any

from gopd_merge.report.progress import Progress, Silent
from gopd_merge.report.terminal import columns

PERCENT = ("accuracy", "preferred")  # scores that are shares


class SilentTraining(Silent):
    """Says nothing."""

    def scored(self, score: Any, steps: int) -> None: ...


class TrainingProgress(Progress):
    """Draws on stderr."""

    def started(self, config: Any, inputs: Any) -> None:
        self._print(f"expert   {config.expert}, LoRA of rank {inputs.rank} on {','.join(t.removesuffix('_proj') for t in inputs.targets)}")
        precision = "NF4" if config.quantize == "nf4" else "full precision"
        self._print(f"base     {inputs.base.name}, {precision}" + (f"; goes on from {inputs.start.name}" if inputs.start else ""))
        if inputs.teacher:
            self._print(f"teacher  {inputs.teacher.name}, on the same base")
        self._print("examples " + " · ".join(f"{name} {len(found):,}" for name, found in inputs.splits.items()))
        answers = f", {config.generations} answers each" if inputs.recipe == "rlvr" else ""
        self._print(f"recipe   {inputs.recipe}: {inputs.steps(config)} steps × {config.batch_size} prompts{answers}")

    def step(self, step: int, steps: int, metrics: Mapping[str, Any]) -> None:
        names = (("reward", "reward {:.3f}"), ("preferred", "preferred {:.2f}"), ("loss", "loss {:.4f}"), ("length", "{:.0f} tokens"))
        parts = [text.format(metrics[name]) for name, text in names if metrics.get(name) is not None]
        parts += [f"{sum(metrics['reward_failures'].values())} rewards failed"] if metrics.get("reward_failures") else []
        detail = ", ".join(parts)
        self._advance("training", step, steps, detail)
        if not self._console.is_terminal and (step == steps or step % max(1, steps // 10) == 0):
            self._print(f"step {step}/{steps}  {detail}")

    def evaluating(self, done: float, total: int, method: str) -> None:
        self._advance(method, done, total, "")

    def scored(self, score: Any, steps: int) -> None:
        self._print(f"step {score.step}/{steps}  {score_text(vars(score))}")


def score_text(score: Mapping[str, Any]) -> str:
    """A validation in words, with its interval."""
    metric, value, low, high = (score[name] for name in ("metric", "score", "low", "high"))
    if metric in PERCENT:
        what = "right" if metric == "accuracy" else "preferred as they should be"
        return f"validation {100 * value:.1f} % {what} ({100 * low:.1f}–{100 * high:.1f}), n = {score['n']:,}"
    unit = " nats a token" if metric == "loss" else ""
    return f"validation {metric} {value:.4f} ({low:.4f}–{high:.4f}){unit}, n = {score['n']:,}"


def plan_text(document: Mapping[str, Any]) -> str:
    """What a training would do, as --dry-run prints it."""
    base, student = document["base"], document["student"]
    answers = f", {document['generations']} answers each" if document["generations"] else ""
    rows = [
        ["expert", f"{document['domain']}, to {document['output']}"],
        ["base", f"{base['name']}, {'NF4' if base['quantization'] == 'nf4' else 'full precision'}"],
        ["student", f"LoRA of rank {student['rank']} on {', '.join(student['targets'])}"],
        *([["start", document["start"]]] if document["start"] else []),
        *([["teacher", document["teacher"]]] if document["teacher"] else []),
        ["examples", " · ".join(f"{name} {count:,}" for name, count in document["examples"].items())],
        ["recipe", f"{document['recipe']}: {document['steps']} steps × {document['batch_size']} prompts{answers}"],
        *(["note", note] for note in document["notes"]),
    ]
    return columns(rows)
