"""Every step asks the same number of prompts of each domain."""

from collections import Counter
from pathlib import Path

from gopd_merge.prompts.mixing import PromptMixer
from gopd_merge.prompts.sources import Prompt, PromptSet

SETS = [
    PromptSet("math", Path("m"), tuple(Prompt(prompt=f"m{i}") for i in range(7))),
    PromptSet("code", Path("c"), tuple(Prompt(prompt=f"c{i}") for i in range(100))),
]


def test_every_step_holds_equally_many_of_each_domain_and_labels_them_right():
    mixer = PromptMixer(SETS, batch_size=10, seed=0)
    for step in range(20):
        texts, domains = mixer.batch(step)
        assert Counter(domains) == {"math": 5, "code": 5}
        assert all(text[0] == domain[0] for text, domain in zip(texts, domains, strict=True))


def test_a_domain_is_used_up_before_any_of_its_prompts_returns():
    mixer = PromptMixer(SETS, batch_size=2, seed=0)
    asked = [text for step in range(14) for text in mixer.batch(step)[0] if text[0] == "m"]
    assert len(set(asked[:7])) == 7
    assert set(asked[:7]) == set(asked[7:])
    assert asked[:7] != asked[7:]


def test_a_step_is_a_function_of_the_seed_alone():
    first = PromptMixer(SETS, batch_size=10, seed=1)
    assert first.batch(5) == PromptMixer(SETS[::-1], batch_size=10, seed=1).batch(5)
    assert first.batch(5) != PromptMixer(SETS, batch_size=10, seed=2).batch(5)
    assert first.batch(5) != first.batch(6)
