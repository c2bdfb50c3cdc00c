"""A short merge of the embedded experts, and comparisons of it in folders of their own."""

import shutil

import pytest

from gopd_merge import MergeConfig, merge
from gopd_merge.comparison.run import compare
from gopd_merge.eval_config import CompareConfig
from gopd_merge.options import checked


@pytest.fixture(scope="session")
def short_merge(tmp_path_factory):
    """Make a merge of two steps: short_merge(alpha=2.0, seed=0) -> its folder; the same arguments give the same one."""
    made = {}

    def make(alpha=2.0, seed=0):
        if (alpha, seed) not in made:
            output = tmp_path_factory.mktemp("merges") / f"alpha-{alpha}-seed-{seed}.lora"
            experts = {domain: f"adapters/{domain}.lora" for domain in ("math", "code")}
            merge(MergeConfig(experts=experts, alpha=alpha, seed=seed, output=output, steps=2, batch_size=8, max_new_tokens=24, eval=False))
            made[alpha, seed] = output
        return made[alpha, seed]

    return make


@pytest.fixture
def merged(short_merge, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(short_merge(), tmp_path / "merged.lora")


@pytest.fixture
def compared(tmp_path):
    """Compare in this process, with few questions: compared(adapters, **options) -> Evaluation."""

    def run(*adapters, **options):
        defaults = {"limit": 8, "tune_limit": 4, "batch_size": 8, "rivals": ["average"], "output": tmp_path / "evaluation"}
        config = checked(CompareConfig, {**defaults, **options, "adapters": [str(a) for a in adapters]})
        return compare(config, "gopd-merge compare")

    return run
