"""What is asked and answered: prompts and responses of planned lengths, the same for every contender."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from models import EOS, FIRST_WORD, PAD, Shape
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

FILLS = ("full", "ragged")
RAGGED = (0.2, 1.0)  # shares of the longest, evenly spread: 0.6 on average


@dataclass(frozen=True)
class Questions:
    """A step's prompts, and how long each response will be."""

    prompts: tuple[tuple[int, ...], ...]  # token ids; the first token of each is its own
    response_lengths: tuple[int, ...]
    limit: int  # tokens of a response; one of that length has no end token

    @property
    def texts(self) -> list[str]:
        return [" ".join(f"w{token}" for token in prompt) for prompt in self.prompts]

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """Tokens of (prompt, response)."""
        return [(len(prompt), response) for prompt, response in zip(self.prompts, self.response_lengths, strict=True)]


@dataclass(frozen=True)
class Recorded:
    """Questions and what the student once answered."""

    questions: Questions
    responses: tuple[tuple[int, ...], ...]

    def save(self, path: Path) -> None:
        torch.save(vars(self.questions) | {"responses": self.responses}, path)

    @staticmethod
    def load(path: Path) -> "Recorded":
        found = torch.load(path)
        responses = found.pop("responses")
        return Recorded(Questions(**found), responses)

    def repeated(self, times: int) -> "Recorded":
        """So many times the tokens, in as much longer a batch."""
        if times == 1:
            return self
        copies = [(FIRST_WORD + len(self.responses) * copy + row, *prompt[1:]) for copy in range(times)
                  for row, prompt in enumerate(self.questions.prompts)]  # fmt: skip
        asked = Questions(tuple(copies), self.questions.response_lengths * times, self.questions.limit)
        return Recorded(asked, self.responses * times)

    def padded(self) -> tuple[Tensor, Tensor, Tensor]:
        """ids and attention mask (B, P + T), prompts padded on the left and responses on the right, and the responses' mask (B, T)."""
        prompts, responses = self.questions.prompts, self.responses
        P, T = max(map(len, prompts)), max(map(len, responses))
        rows = [[PAD] * (P - len(p)) + list(p) + list(r) + [PAD] * (T - len(r)) for p, r in zip(prompts, responses, strict=True)]
        masks = [[0] * (P - len(p)) + [1] * (len(p) + len(r)) + [0] * (T - len(r)) for p, r in zip(prompts, responses, strict=True)]
        mask = torch.tensor(masks)
        return torch.tensor(rows), mask, mask[:, P:].bool()


def make_questions(shape: Shape, fill: str, seed: int = 0) -> Questions:
    """Full: all as long as may be. Ragged: prompts and responses from 0.2 to 1 of that, in no order."""
    generator = torch.Generator().manual_seed(seed)
    count = shape.prompts

    def spread(longest: int) -> list[int]:
        if fill == "full":
            return [longest] * count
        shares = torch.linspace(*RAGGED, count)[torch.randperm(count, generator=generator)]
        return [max(1, round(longest * float(share))) for share in shares]

    prompts = []
    for row, length in enumerate(spread(shape.prompt_tokens)):
        rest = torch.randint(FIRST_WORD + count, shape.vocabulary, (length - 1,), generator=generator)
        prompts.append((FIRST_WORD + row, *rest.tolist()))
    return Questions(tuple(prompts), tuple(spread(shape.response_tokens)), shape.response_tokens)


class PlannedLengths(LogitsProcessor):
    """Each response ends where it is planned, whichever rows share its batch: a row is known by its prompt's first token."""

    def __init__(self, questions: Questions) -> None:
        self.limit = questions.limit
        self.plan = {p[0]: (len(p), n) for p, n in zip(questions.prompts, questions.response_lengths, strict=True)}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, [PAD, EOS]] = -torch.inf
        begins = (input_ids != PAD).int().argmax(1).tolist()
        for row, begin in enumerate(begins):
            prompt, response = self.plan[int(input_ids[row, begin])]
            if begin + prompt + response == input_ids.shape[1] + 1 and response < self.limit:
                scores[row] = -torch.inf
                scores[row, EOS] = 0.0
        return scores


@contextmanager
def planned(model: Any, questions: Questions) -> Iterator[None]:
    """`model.generate` makes responses of the planned lengths while the block lasts, whoever calls it."""
    plain: Callable[..., Any] = model.generate

    def generate(*arguments: Any, logits_processor: Any = None, **options: Any) -> Any:
        processors = LogitsProcessorList([*(logits_processor or ()), PlannedLengths(questions)])
        return plain(*arguments, logits_processor=processors, **options)

    model.generate = generate
    try:
        yield
    finally:
        del model.generate
