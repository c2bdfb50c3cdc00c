"""Does a program pass its tests?"""

import datasets
import evaluate

from gopd_merge.evaluate.graders import program_of
from gopd_merge.evaluate.metrics import scores
from gopd_merge.evaluate.sandbox import Limits, run_programs
from gopd_merge.prompts.sources import Prompt

DESCRIPTION = """
Runs each program in a sandbox without network and files, against the tests of its question (HumanEval, MBPP).
"""
INPUTS = """
Args:
    predictions: a list of texts (samples) for each question: the function, in a code block or not, or the rest of the prompt's function
    references: for each question the JSON text {"tests": "…" or ["…", …], "entry_point": "…", "prompt": "…"}
    k: the sizes of pass@k
    seconds: the most that one program may take
    workers: how many run at once
    unsafe: run without a sandbox
Returns:
    pass@k: for each k, the mean over questions of the unbiased estimate 1 - C(n - c, k) / C(n, k)
    correct: for each question and sample whether it is right
"""


class CodeTests(evaluate.Metric):
    def _info(self):
        features = {"predictions": datasets.Sequence(datasets.Value("string")), "references": datasets.Value("string")}
        return evaluate.MetricInfo(DESCRIPTION, citation="", inputs_description=INPUTS, features=datasets.Features(features))

    def _compute(self, predictions, references, k=(1,), seconds=10.0, workers=None, unsafe=False):
        questions = [Prompt.model_validate_json(text) for text in references]
        programs = [program_of(question, text) for question, samples in zip(questions, predictions, strict=True) for text in samples]
        verdicts = run_programs(programs, Limits(seconds=seconds), workers, unsafe)
        return scores(predictions, (verdict.passed for verdict in verdicts), k)
