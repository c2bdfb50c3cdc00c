"""Who answers the prompts of a step, by method: the student (on-policy), each domain's expert, or the data. No torch."""

from typing import Literal

Answerer = Literal["student", "experts", "data"]
ANSWERED_BY: dict[str, Answerer] = {
    "exopd": "student",
    "opd": "student",
    "alternate": "student",
    "rkl": "experts",
    "seqkd": "experts",
    "sft": "data",
}
LEARNT_BY_HEART = ("seqkd", "sft")  # methods whose loss is the cross-entropy of what was answered
