"""A whole comparison document out of seeded random numbers: nothing in it was measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gopd_merge.report.document import Document, read_document

N, K = 400, 4
HOSTILE = (
    "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>{{ 7 * 7 }}&amp;"
    "\x00\x1b[31m\u202eright to left\u202c \ud800"
)
FREE = (
    "label",
    "about",
    "licence",
    "tuned_on",
    "text",
    "prompt",
    "reference",
    "id",
    "name",
    "output",
    "command",
    "device",
    "commit",
    "adapter",
    "math",
    "code",
)
ARABIC = "الجواب هو ٤٢، لأن ٦ × ٧ = ٤٢"
STATICS = {
    "average": (None, 0.55),
    "task_arithmetic": ({"scale": 1.4}, 1.15),
    "ties": ({"density": 0.5, "scale": 1.2}, 0.95),
    "dare_ties": ({"density": 0.7, "scale": 1.3}, 1.0),
    "sce": ({"top_k": 0.3}, 0.8),
    "svd": ({"rank": 8, "scale": 1.4}, 1.1),
    "expo": ({"factor": 0.4}, 1.05),
}
LABELS = {
    "average": "exact average",
    "task_arithmetic": "task arithmetic",
    "ties": "TIES",
    "dare_ties": "DARE-TIES",
    "sce": "SCE",
    "svd": "SVD",
    "expo": "ExPO",
}
RIVALS = (("task_arithmetic", "best static merge"), ("average", "average"), ("ties", "static merge"), ("base", "base"))
DOMAINS = ("math", "code")
METRICS = {"math": "math_answer", "code": "function_cases"}
VERSIONS = {"math": "12ab" * 16, "code": "34cd" * 16}


def make_comparison(seed: int = 7, alpha: float = 1.5, alphas: tuple[float, ...] = (1.0, 1.5, 2.0)) -> dict[str, Any]:
    """2 domains, 13 methods, 3 alphas with 2 seeds each, curves, tuning, samples with hostile texts."""
    random = np.random.default_rng(seed)
    ease = {d: random.normal(0, 1.2, N) for d in DOMAINS}
    methods = [_method("base", "base", "base")]
    skill = {("base", None): dict.fromkeys(DOMAINS, 0.0)}
    for own in DOMAINS:
        methods.append(_method(f"expert:{own}", f"{own} expert", "expert", sha256=f"{own}" * 8))
        skill[f"expert:{own}", None] = {d: 1.2 if d == own else 0.15 for d in DOMAINS}
    for number, (name, (parameters, level)) in enumerate(STATICS.items()):
        cost = {"train_seconds": 0.0, "tune_seconds": 40.0 * number, "answer_seconds": 30.0 + number, "tokens": 90_000 * (1 + number)}
        methods.append(_method(name, LABELS[name], "static", parameters=parameters, **cost))
        skill[name, None] = dict.fromkeys(DOMAINS, level)
    for a in alphas:
        name = "opd" if a == 1 else "exopd"
        cost = {"train_seconds": 95.0 + a, "tune_seconds": 0.0, "answer_seconds": 33.0, "tokens": 700_000}
        for s in (0, 1):
            adapter = f"merged-{a:g}-{s}.lora"
            methods.append(
                _method(name, f"merged, α = {a:g}", "trained", alpha=a, adapter=adapter, sha256=f"{s}{a:.2f}".replace(".", "") * 16, **cost)
            )
        skill[name, a] = dict.fromkeys(DOMAINS, 1.2 + 0.35 * (a - 1) - 0.25 * (a - 1) ** 2)
    answers = {
        (m, d): random.binomial(K, 1 / (1 + np.exp(-(levels[d] + ease[d] - 0.2)))) / K for m, levels in skill.items() for d in DOMAINS
    }
    lengths = np.random.default_rng(seed + 1)  # apart, so that documents of other alphas hold the same rows for base and rivals
    rows = [_row(m, a, d, answers[(m, a), d], methods, lengths) for (m, a) in skill for d in DOMAINS]
    headline = ("opd" if alpha == 1 else "exopd", alpha)
    compared = [
        _comparison(headline[0], r, d, is_, answers[headline, d], answers[(r, None), d])
        for d in DOMAINS
        for r, is_ in ((f"expert:{d}", "best expert"), *RIVALS)
    ]
    return {
        "schema": 1,
        "kind": "comparison",
        "output": "synthetic.lora",
        "headline": {"method": headline[0], "alpha": alpha},
        "suites": [_suite(d) for d in DOMAINS],
        "methods": methods,
        "results": rows,
        "comparisons": compared,
        "tuning": _tuning(random),
        "curves": [_curve(a, s, random) for a in alphas for s in (0, 1)],
        "samples": _samples(list(skill), random),
        **_scale(),
        "inputs": {d: {"name": f"you/{d}-lora", "commit": "0123456789abcdef" * 2, "sha256": "ab12" * 16, "rank": 8} for d in DOMAINS},
        "base": {"name": "you/tiny-base", "commit": "fedcba9876543210" * 2, "quantization": "nf4"},
        "config": {"steps": 50, "batch_size": 64, "alpha": alpha, "learning_rate": None, "estimator": "full"},
        "command": "gopd-merge compare synthetic.lora --suite embedded --rivals all",
        "seconds": {"answer": 512.0, "tune": 130.25},
        "environment": {"commit": "a" * 40, "python": "3.11.2", "torch": "2.13.0", "device": "cpu"},
    }


def _method(method: str, label: str, kind: str, **values: Any) -> dict[str, Any]:
    cost = {
        "train_seconds": 0.0,
        "tune_seconds": 0.0,
        "answer_seconds": 31.0,
        "tune_answers": 0,
        "answers": 2 * N * K,
        "tokens": 80_000,
        "device": "cpu",
    }
    described = {"parameters": None, "alpha": None, "sha256": None, "adapter": None}
    described |= {name: value for name, value in values.items() if name in described}
    return {"method": method, "label": label, "kind": kind, **described, "cost": cost | {k: v for k, v in values.items() if k in cost}}


def _row(
    method: str, alpha: float | None, domain: str, right: np.ndarray, methods: list[dict[str, Any]], random: np.random.Generator
) -> dict[str, Any]:
    half = 1.96 * right.std(ddof=1) / np.sqrt(N)
    score, seeds = float(right.mean()), [0, 1] if alpha else [0]
    return {
        "suite": "embedded",
        "domain": domain,
        "method": method,
        "parameters": next(m["parameters"] for m in methods if m["method"] == method),
        "alpha": alpha,
        "split": "test",
        "seed": None if alpha else 0,
        "seeds": seeds,
        "seed_sd": 0.011 if alpha else None,
        "n": N,
        "k": K,
        "temperature": 1.0,
        "metric": METRICS[domain],
        "score": score,
        "low": score - half,
        "high": score + half,
        "length_mean": 20 + 25 * float(random.random()),
        "length_capped": 0.02 * float(random.random()),
        "empty": 0.0025 if method == "base" else 0.0,
    }


def _comparison(method: str, rival: str, domain: str, rival_is: str, ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    difference, half = float((ours - theirs).mean()), 1.96 * float((ours - theirs).std(ddof=1)) / np.sqrt(N)
    p = float(np.clip(2 * np.exp(-0.72 * (1.96 * difference / half) ** 2), 0, 1))
    return {
        "suite": "embedded",
        "domain": domain,
        "method": method,
        "rival": rival,
        "rival_is": rival_is,
        "n": N,
        "difference": difference,
        "low": difference - half,
        "high": difference + half,
        "p": p,
        "p_holm": min(1.0, p * 10),
        "test": "permutation",
    }


def _suite(domain: str) -> dict[str, Any]:
    return {
        "suite": "embedded",
        "domain": domain,
        "version": VERSIONS[domain],
        "about": f"questions of the {domain} domain",
        "metric": METRICS[domain],
        "licence": "Apache-2.0",
        "split": "test",
        "n": N,
        "k": K,
        "temperature": 1.0,
        "max_new_tokens": 96,
        "stop": ["\n\n"],
        "chat": False,
        "tuned_on": "200 questions of the validation split",
    }


def _tuning(random: np.random.Generator) -> list[dict[str, Any]]:
    points = []
    for method, (parameters, level) in STATICS.items():
        for factor in (0.8, 1.0, 1.2) if parameters else ():
            tried = {name: round(value * factor, 2) for name, value in parameters.items()}
            for domain in DOMAINS:
                score = 0.5 + 0.15 * level - 0.2 * abs(factor - 1) + 0.01 * float(random.normal())
                points.append(
                    {
                        "method": method,
                        "parameters": tried,
                        "suite": "embedded",
                        "domain": domain,
                        "n": 200,
                        "score": score,
                        "chosen": factor == 1.0,
                    }
                )
    return points


def _curve(alpha: float, seed: int, random: np.random.Generator) -> dict[str, Any]:
    rows = []
    for step in range(1, 51):
        decay = np.exp(-step / 15)
        domains = {
            d: {
                "kl_to_target": 0.3 * alpha * decay + 0.02 + 0.01 * float(random.random()),
                "reward": -0.1 + 0.3 * alpha * (1 - decay),
                "drift": 0.4 * alpha * (1 - decay),
                "entropy": 0.5 + 0.6 * decay + 0.02 * float(random.normal()),
                "response_length": 30 + i * 12 + 2 * float(random.normal()),
                "capped": 0.01,
            }
            for i, d in enumerate(DOMAINS)
        }
        rows.append(
            {
                "step": step,
                "kl_to_target": 0.1,
                "grad_norm": 0.5,
                "learning_rate": 0.002,
                "tokens_per_second": 900.0,
                "memory_bytes": 1,
                "domains": domains,
            }
        )
    return {"label": f"merged, α = {alpha:g}", "method": "opd" if alpha == 1 else "exopd", "alpha": alpha, "seed": seed, "rows": rows}


def _scale() -> dict[str, Any]:
    """What a probe found before the merge: the score rises to α = 1.5 and falls."""
    random, points = np.random.default_rng(11), []
    for domain in DOMAINS:
        for alpha in (0.0, 1.0, 1.5, 2.0, 3.0):
            score = 0.45 + 0.35 * alpha - 0.115 * alpha**2 + 0.01 * float(random.normal())
            points.append(
                {
                    "domain": domain,
                    "suite": "own",
                    "alpha": alpha,
                    "learning_rate": None,
                    "steps": None,
                    "seed": 0,
                    "n": 300,
                    "score": score,
                    "low": score - 0.05,
                    "high": score + 0.04,
                    "metric": METRICS[domain],
                    "length_mean": 30.0 + 10 * alpha,
                    "length_capped": 0.004 * alpha,
                    "entropy": None,
                }
            )
    why = {d: f"α = {a:g} scores best, so says the synthetic probe" for d, a in (("math", 1.5), ("code", 2.0))}
    return {"scale": points, "scale_made_by": "probe", "chosen": {"math": 1.5, "code": 2.0}, "chosen_options": {}, "why": why}


def _samples(methods: list[tuple[str, float | None]], random: np.random.Generator) -> list[dict[str, Any]]:
    samples = []
    for domain in DOMAINS:
        for number in range(6):
            a, b = (int(x) for x in random.integers(3, 40, 2))
            answers = [
                {
                    "method": m,
                    "alpha": alpha,
                    "text": f"{a} and {b} more.\n{a} + {b} = {total}\nThe answer is {total}.",
                    "correct": total == a + b,
                    "length": 21,
                    "capped": False,
                }
                for m, alpha in methods
                for total in [a + b + int(random.random() < 0.3) * int(random.integers(1, 4))]
            ]
            prompt = f"Tom has {a} apples and buys {b} more. How many has he?"
            samples.append(
                {
                    "suite": "embedded",
                    "domain": domain,
                    "id": f"{domain}/{number}",
                    "prompt": prompt,
                    "reference": str(a + b),
                    "answers": answers,
                }
            )
    samples[1]["prompt"] = samples[1]["id"] = HOSTILE
    for answer, text in zip(samples[1]["answers"], (HOSTILE, ARABIC, "x" * 100_000, "", "word " * 20_000), strict=False):
        answer |= {"text": text, "length": len(text), "capped": len(text) > 1000}
    return samples


@pytest.fixture(scope="session")
def make_document():
    """A document as data, to change and write: make_document(seed=…, alpha=…, alphas=…)."""
    return make_comparison


@pytest.fixture
def written(tmp_path):
    """Write data as a results.json of the given name; returns its path."""

    def write(data: object, name: str = "results.json") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(data))
        return path

    return write


@pytest.fixture(scope="session")
def hostile_document(tmp_path_factory) -> Document:
    """The synthetic document with markup in every text that people or models write."""

    def spoil(part: dict[str, Any]) -> dict[str, Any]:
        return {key: HOSTILE if isinstance(value, str) and key in FREE else value for key, value in part.items()}

    path = tmp_path_factory.mktemp("hostile") / "results.json"
    path.write_text(json.dumps(json.loads(json.dumps(make_comparison()), object_hook=spoil)))
    return read_document(path)


@pytest.fixture(scope="session")
def document(tmp_path_factory) -> Document:
    """The synthetic document, read."""
    path = tmp_path_factory.mktemp("comparison") / "results.json"
    path.write_text(json.dumps(make_comparison()))
    return read_document(path)
