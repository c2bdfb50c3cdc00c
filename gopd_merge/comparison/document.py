"""The comparison as one JSON document: what `--json` prints, `evaluation/results.json` keeps and `gopd-merge report` reads."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gopd_merge.comparison.contenders import Contender
from gopd_merge.comparison.measuring import Measured, key_of
from gopd_merge.comparison.tuning import Tuned
from gopd_merge.disk import read_json_lines
from gopd_merge.distillation import METRICS
from gopd_merge.evaluate.statistics import Comparison, Result
from gopd_merge.evaluate.suites import EXPERT_REWARD, Benchmark
from gopd_merge.report.document import KIND, SCHEMA
from gopd_merge.report.scale import scale_in
from gopd_merge.report.terminal import label_of

SAMPLES = 24  # questions of each benchmark that are shown with their answers
LONGEST = 10_000  # characters of an answer that are kept there; the whole is in answers/


def comparison_document(
    measured: Sequence[Measured],
    about: Contender,
    results: Sequence[Result],
    comparisons: Sequence[Comparison],
    test: Sequence[Benchmark],
    tuned: Sequence[Tuned],
    validation: Sequence[Benchmark],
    described: Mapping[str, Any],
) -> dict[str, Any]:
    """All of it, about the merge `about`.

    `described` holds what the run knows of itself: command, inputs, base, config, seconds, environment.
    """
    device = described["environment"]["device"]
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "output": about.name,
        "headline": _played(about),
        "suites": [_suite(benchmark, validation) for benchmark in test],
        "methods": [_method(one, next((t for t in tuned if t.contender is one.contender), None), device) for one in measured],
        "results": [asdict(row) for row in results],
        "comparisons": [asdict(row) for row in comparisons],
        "tuning": [
            {"method": t.contender.method, **asdict(point), "chosen": point.parameters == (t.contender.parameters or {})}
            for t in tuned
            for point in t.points
        ],
        "curves": [curve for one in measured if (curve := _curve(one.contender))],
        **_scale(about),
        "samples": [sample for benchmark in test for sample in _samples(benchmark, measured)],
        **described,
    }


def _suite(benchmark: Benchmark, validation: Sequence[Benchmark]) -> dict[str, Any]:
    suite = benchmark.suite
    tuned_on = sorted({f"{v.suite.name}, {len(v.items):,} validation questions" for v in validation if v.domain == benchmark.domain})
    return {
        "suite": suite.name,
        "domain": benchmark.domain,
        "version": benchmark.version,
        "metric": benchmark.metric,
        "about": suite.about,
        "licence": suite.licence,
        "split": benchmark.split,
        "n": len(benchmark.items),
        "k": suite.samples,
        "temperature": suite.temperature,
        "max_new_tokens": suite.max_new_tokens,
        "stop": list(suite.stop),
        "chat": suite.chat,
        "system": suite.system,
        "tuned_on": "; ".join(tuned_on) or None,
    }


def _method(one: Measured, tuning: Tuned | None, device: str) -> dict[str, Any]:
    contender = one.contender
    answers = [answer for found in one.answers.values() for answer in found]
    tuned = tuning.answers if tuning else ()
    return {
        "method": contender.method,
        "label": label_of(contender.method, contender.alpha, contender.parameters),
        "kind": contender.kind,
        "parameters": contender.parameters,
        "alpha": contender.alpha,
        "seed": contender.seed,
        "lost": tuning.lost if tuning else None,
        "sha256": contender.sha256,
        "adapter": contender.name,
        "cost": {
            "train_seconds": round(contender.train_seconds, 2),
            "tune_seconds": round(sum(answer.seconds for answer in tuned), 2),
            "answer_seconds": round(sum(answer.seconds for answer in answers), 2),
            "tune_answers": len(tuned),
            "answers": len(answers),
            "tokens": contender.train_tokens + sum(answer.length for answer in (*tuned, *answers)),
            "device": device,
        },
    }


def _curve(contender: Contender) -> dict[str, Any] | None:
    """The metrics of a training run whose log came with its adapter."""
    rows = read_json_lines(contender.folder / METRICS) if contender.folder else []
    label = label_of(contender.method, contender.alpha, contender.parameters)
    return {"label": label, **_played(contender), "seed": contender.seed, "rows": rows} if rows else None


def _played(contender: Contender) -> dict[str, Any]:
    """What tells a method from another, in everything that it did."""
    return {"method": contender.method, "alpha": contender.alpha, "parameters": contender.parameters}


def _scale(about: Contender) -> dict[str, Any]:
    """What was known about α before the merge, where its folder holds that."""
    known = scale_in(about.folder)
    if known is None:
        return {}
    found = known.model_dump(mode="json", include={"chosen", "chosen_options", "why"})
    return {"scale": [point.model_dump(mode="json") for point in known.points], "scale_made_by": known.made_by, **found}


def _samples(benchmark: Benchmark, measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Some questions with every method's first answer: those whose ids have the smallest hashes, so nobody chose them."""
    shown = sorted(benchmark.items, key=lambda item: hashlib.sha256(f"shown {item.id}".encode()).digest())[:SAMPLES]
    first = [{a.id: a for a in one.answers[key_of(benchmark)] if a.sample == 0} for one in measured]
    return [
        {
            "suite": benchmark.suite.name,
            "domain": benchmark.domain,
            "id": item.id,
            "prompt": item.prompt,
            "reference": item.answer,
            "answers": [
                {
                    **_played(one.contender),
                    "text": answer_of[item.id].text[:LONGEST],
                    "correct": answer_of[item.id].score if benchmark.metric == EXPERT_REWARD else bool(answer_of[item.id].score),
                    "length": answer_of[item.id].length,
                    "capped": answer_of[item.id].capped,
                }
                for one, answer_of in zip(measured, first, strict=True)
            ],
        }
        for item in shown
    ]
