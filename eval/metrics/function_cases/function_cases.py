"""Does a small function give the expected values?"""

import json

import datasets
import evaluate

from gopd_merge.evaluate.graders import passes_cases
from gopd_merge.evaluate.metrics import scores
from gopd_merge.prompts.sources import Case

DESCRIPTION = """
Evaluates a straight-line Python function on hidden cases with simpleeval. Nothing is executed, and no sandbox is needed.
"""
INPUTS = """
Args:
    predictions: a list of texts (samples) for each question, each one function
    references: for each question the JSON text {"cases": [{"args": […], "expected": …}, …]}
    k: the sizes of pass@k
Returns:
    pass@k: for each k, the mean over questions of the unbiased estimate 1 - C(n - c, k) / C(n, k)
    correct: for each question and sample whether it is right
"""


class FunctionCases(evaluate.Metric):
    def _info(self):
        features = {"predictions": datasets.Sequence(datasets.Value("string")), "references": datasets.Value("string")}
        return evaluate.MetricInfo(DESCRIPTION, citation="", inputs_description=INPUTS, features=datasets.Features(features))

    def _compute(self, predictions, references, k=(1,)):
        cases = [[Case.model_validate(case) for case in json.loads(text)["cases"]] for text in references]
        correct = [passes_cases(text, hidden) for hidden, samples in zip(cases, predictions, strict=True) for text in samples]
        return scores(predictions, correct, k)
