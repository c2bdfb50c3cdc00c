"""Data sets of prompts that are known by name: where they are, at which commit, in which column, under which licence."""

import difflib

from pydantic import BaseModel, ConfigDict

from gopd_merge.errors import InputError
from gopd_merge.prompt_source import CATALOGUE, DatasetSource, parse_source


class Entry(BaseModel):
    """A data set of the catalogue. The fields that a prompt is made of are Jinja templates over its columns."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    domain: str
    about: str
    licence: str
    source: str  # in the form of --prompts, pinned
    prompt: str
    answer: str | None = None  # what its answers are graded by, where that is a number or a formula
    response: str  # a whole answer, as --method sft learns it

    @property
    def where(self) -> DatasetSource:
        """The source as it is read."""
        found = parse_source(self.source)
        assert isinstance(found, DatasetSource)
        return found


ENTRIES = {
    "gsm8k": Entry(
        domain="math",
        about="GSM8K, grade-school word problems: the train split but for the 500 that the suite gsm8k keeps for validation",
        licence="mit",
        source="openai/gsm8k:main/train[500:]@e53f048856ff4f594e959d75785d2c2d37b678ee",
        prompt="{{ question }}",
        answer='{{ answer.split("####")[-1].strip().replace(",", "") }}',
        response="{{ answer }}",
    ),
    "math": Entry(
        domain="math",
        about="MATH, competition problems with LaTeX answers: the train split",
        licence="mit",
        source="DigitalLearningGmbH/MATH-lighteval:default/train@0530c78699ea5e8eb5530600900e1f328b48acad",
        prompt="{{ problem }}",
        response="{{ solution }}",
    ),
    "mbpp": Entry(
        domain="code",
        about="MBPP, small Python functions: the train split but for what the suite mbpp keeps for validation",
        licence="cc-by-4.0",
        source="google-research-datasets/mbpp:full/train[:104]+train[214:]@4bb6404fdc6cacfda99d4ac4205087b89d32030c",
        prompt="{{ text }}\n\nThe Python function has to pass these tests:\n\n```python\n{{ test_list | join('\n') }}\n```",
        response="```python\n{{ code }}\n```",
    ),
}


def entry(name: str) -> Entry:
    """The entry of that name. Raises InputError."""
    if name in ENTRIES:
        return ENTRIES[name]
    close = difflib.get_close_matches(name, ENTRIES, n=1, cutoff=0.5)
    meant = f", did you mean {CATALOGUE}{close[0]}?" if close else ""
    raise InputError(f"{CATALOGUE}{name}: is not in the catalogue{meant}; it has {', '.join(ENTRIES)}")
