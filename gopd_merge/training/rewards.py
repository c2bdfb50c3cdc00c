"""What an answer is worth: by our graders, a regular expression, or the user's own function. Failures count as 0 and by kind. No torch."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gopd_merge.errors import GopdError, InputError
from gopd_merge.evaluate.graders import answers_equal, passes_cases, program_of
from gopd_merge.evaluate.sandbox import check_sandbox, run_programs
from gopd_merge.train_config import TrainConfig
from gopd_merge.training.isolated import Isolated
from gopd_merge.training.reading import Example

HOPELESS = 8  # failures in a row from the first call on: a function that hangs would take hours to fail everywhere


class Rewards:
    """Rewards one batch of answers after the other."""

    def __init__(self, config: TrainConfig) -> None:
        """Raises InputError where the user's own function cannot be loaded."""
        self.failures: Counter[str] = Counter()  # kind -> how often
        self.calls = 0
        self._config = config
        self._own: Isolated | None = None
        if config.reward:
            file, _, name = config.reward.rpartition(":")
            if not Path(file).is_file():
                raise InputError(f"--reward {config.reward}: {file} is missing; name an existing Python file")
            self._own = Isolated("function", file, name, config.reward_seconds)
        elif config.reward_regex is not None:
            self._own = Isolated("regex", config.reward_regex, "", config.reward_seconds)

    def of(self, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        """One finite number for each answer, `texts[i]` being one to `examples[i]`. Raises GopdError where all calls of the batch fail."""
        if self._own is None:
            return graded(examples, texts, self._config.final, self._config.unsafe_exec)
        rewards, failed = [], Counter[str]()
        for example, text in zip(examples, texts, strict=True):
            outcome = self._own.call({**(row := example.others), "row": row, "prompt": example.prompt, "response": text})
            rewards.append(outcome.reward)
            failed.update([outcome.failure] if outcome.failure else [])
            if failed.total() == len(rewards) >= min(HOPELESS, len(texts)):
                raise GopdError(f"{self._said}: all of {len(rewards)} calls in a row failed: {_listed(failed)}; correct it and begin again")
        self.failures += failed
        self.calls += len(texts)
        return rewards

    def close(self) -> None:
        """End what runs beside."""
        if self._own:
            self._own.close()

    @property
    def _said(self) -> str:
        return f"--reward {self._config.reward}" if self._config.reward else f"--reward-regex {self._config.reward_regex}"


def check_rewards(config: TrainConfig, examples: Sequence[Example]) -> None:
    """Raises InputError where programs are to be graded and there is no sandbox."""
    if not (config.reward or config.reward_regex) and any(e.answer is None and e.cases is None for e in examples):
        check_sandbox(config.unsafe_exec)


def graded(examples: Sequence[Example], texts: Sequence[str], final: str, unsafe_exec: bool) -> list[float]:
    """1 for a right answer, else 0: by the example's `answer` if it has one, else its `cases`, else its `tests`, as `grade` does."""
    rewards = [0.0] * len(texts)
    by_answer = [i for i, example in enumerate(examples) if example.answer is not None]
    answers = [example.answer for example in examples if example.answer is not None]
    for index, right in zip(by_answer, answers_equal([texts[i] for i in by_answer], answers, final), strict=True):
        rewards[index] = float(right)
    programs = []
    for index, example in enumerate(examples):
        if example.answer is None and example.cases is not None:
            rewards[index] = float(passes_cases(texts[index], example.cases))
        elif example.answer is None:
            programs.append(index)
    verdicts = run_programs([program_of(examples[i], texts[i]) for i in programs], unsafe=unsafe_exec) if programs else []
    for index, verdict in zip(programs, verdicts, strict=True):
        rewards[index] = float(verdict.passed)
    return rewards


def constant(rewards: Sequence[float]) -> float | None:
    """The value that all have, None where they differ: then there is nothing to learn from."""
    return rewards[0] if rewards and all(math.isclose(r, rewards[0], rel_tol=1e-9, abs_tol=1e-12) for r in rewards) else None


def nothing_to_learn(value: float | None, count: int) -> tuple[str, str]:
    """What is wrong where all `count` answers are worth `value`, or where those to each prompt are alike, and what to do."""
    if value is None:
        return "all answers to a prompt had the same reward", "raise --generations, or give a finer reward"
    if value == 0:
        return (
            f"all of {count} answers are rewarded with 0: the base never gets it right, so there is nothing to reinforce",
            "look at its answers (gopd-merge chat), train it by --recipe sft first and give that as --start, take easier data, or correct "
            "the reward",
        )
    if value == 1:
        return f"all of {count} answers are rewarded with 1: there is nothing left to learn here", "take harder data, or a stricter reward"
    return f"all of {count} answers have the same reward, {value:g}, so none is better than another", "correct the reward"


def _listed(failed: Counter[str]) -> str:
    return "; ".join(f"{kind} ({count:,} times)" if count > 1 else kind for kind, count in failed.most_common(3))
