"""Is the final answer mathematically the right one?"""

import json

import datasets
import evaluate

from gopd_merge.evaluate.formulas import SECONDS
from gopd_merge.evaluate.graders import answers_equal
from gopd_merge.evaluate.metrics import scores

DESCRIPTION = """
Compares the final answer of each text with the reference: plain numbers exactly, everything else with math-verify.
"""
INPUTS = r"""
Args:
    predictions: a list of texts (samples) for each question
    references: for each question the JSON text {"answer": "…"}; the answer is a number or LaTeX
    k: the sizes of pass@k
    final: where the answer is: "boxed", the last \boxed{…}; "any", that or what follows the last "####", or what stands for an answer
        near the end; or the marker that must precede it
    seconds: the most that one comparison may take; one that takes longer is not equal
Returns:
    pass@k: for each k, the mean over questions of the unbiased estimate 1 - C(n - c, k) / C(n, k)
    correct: for each question and sample whether it is right
"""


class MathAnswer(evaluate.Metric):
    def _info(self):
        features = {"predictions": datasets.Sequence(datasets.Value("string")), "references": datasets.Value("string")}
        return evaluate.MetricInfo(DESCRIPTION, citation="", inputs_description=INPUTS, features=datasets.Features(features))

    def _compute(self, predictions, references, k=(1,), final="any", seconds=SECONDS):
        answers = [json.loads(text)["answer"] for text in references]
        texts = [text for samples in predictions for text in samples]
        repeated = [answer for answer, samples in zip(answers, predictions, strict=True) for _ in samples]
        return scores(predictions, answers_equal(texts, repeated, final, seconds), k)
