"""Sample answers side by side: cut to a readable length, and marked where they first differ from the merge's. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from gopd_merge.report.document import Answer, Document
from gopd_merge.report.lines import headline_of, lines_of

BUDGET = 120_000  # characters of all answers together, within these limits for one
SHORTEST, LONGEST = 600, 4000


@dataclass(frozen=True)
class Shown:
    """One answer: the text before, in and after the part that first differs; `cut` says what is left out."""

    label: str
    grade: str
    before: str
    mark: str
    after: str
    cut: str | None
    length: str
    headline: bool


@dataclass(frozen=True)
class Question:
    """A question with its answers. `divided`: some are right and others wrong."""

    name: str
    title: str
    prompt: str
    reference: str | None
    answers: Sequence[Shown]
    divided: bool


def questions(document: Document) -> list[Question]:
    """All samples of the document, the merge's answer first in each."""
    labels = {line.who: line.label for line in reversed(lines_of(document))}
    headline = headline_of(lines_of(document))
    about = headline.who if headline else None
    count = sum(len(s.answers) for s in document.samples) or 1
    limit = max(SHORTEST, min(LONGEST, BUDGET // count))
    found = []
    for number, sample in enumerate(document.samples):
        ordered = sorted(sample.answers, key=lambda a: a.who != about)
        first = shortened(ordered[0].text, limit)[0] if ordered else ""
        shown = [_shown(a, labels.get(a.who, a.method), first if i else None, limit, a.who == about) for i, a in enumerate(ordered)]
        grades = {grade(a.correct) for a in ordered}
        title = f"{document.title((sample.suite, sample.domain))} · {sample.id}"
        prompt = shortened(sample.prompt, LONGEST)[0]
        reference = sample.reference and shortened(sample.reference, SHORTEST)[0]
        found.append(Question(f"question-{number}", title, prompt, reference, shown, {"right", "wrong"} <= grades))
    return found


def grade(correct: bool | float) -> str:
    """`right`, `wrong`, or `score 0.42`."""
    return "right" if correct == 1 else "wrong" if correct == 0 else f"score {correct:.3g}"


def shortened(text: str, limit: int) -> tuple[str, str | None]:
    """The beginning and the end of a long text, and a note on what is left out; the end holds the final answer."""
    if len(text) <= limit:
        return text, None
    head, tail = limit * 2 // 3, limit // 3
    left_out = len(text) - head - tail
    return f"{text[:head]}\n[… {left_out:,} characters …]\n{text[-tail:]}", f"{left_out:,} of {len(text):,} characters are not shown"


def first_difference(text: str, other: str) -> tuple[int, int]:
    """Where `text` first departs from `other`, at the start of a word, and where that line ends; its length twice where it does not."""
    if text == other:
        return len(text), len(text)
    start = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    while start > 0 and start < len(text) and text[start].isalnum() and text[start - 1].isalnum():
        start -= 1
    end = text.find("\n", start + 1)
    return start, len(text) if end < 0 else end


def _shown(answer: Answer, label: str, other: str | None, limit: int, headline: bool) -> Shown:
    text, cut = shortened(answer.text, limit)
    start, end = (len(text), len(text)) if other is None else first_difference(text, other)
    tokens = f"{answer.length:,} token{'' if answer.length == 1 else 's'}" + (", cut by the limit" if answer.capped else "")
    return Shown(label, grade(answer.correct), text[:start], text[start:end], text[end:], cut, tokens, headline)
