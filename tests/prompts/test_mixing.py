"""Every step asks the same number of prompts of each domain."""

from collections import Counter
from itertools import chain

import pytest

from gopd_merge.prompts.mixing import PromptMixer
from gopd_merge.prompts.sources import Origin, Prompt, PromptSet

SETS = [
    PromptSet("math", tuple(Prompt(prompt=f"m{i}") for i in range(7)), Origin("own")),
    PromptSet("code", tuple(Prompt(prompt=f"c{i}") for i in range(100)), Origin("own")),
]


def test_every_step_holds_equally_many_of_each_domain_and_labels_them_right():
    mixer = PromptMixer(SETS, batch_size=10, seed=0)
    for step in range(20):
        prompts, domains = mixer.batch(step)
        assert Counter(domains) == {"math": 5, "code": 5}
        assert all(prompt.prompt[0] == domain[0] for prompt, domain in zip(prompts, domains, strict=True))


def test_a_domain_is_used_up_before_any_of_its_prompts_returns():
    mixer = PromptMixer(SETS, batch_size=2, seed=0)
    asked = [asked.prompt for step in range(14) for asked in mixer.batch(step)[0] if asked.prompt[0] == "m"]
    assert len(set(asked[:7])) == 7
    assert set(asked[:7]) == set(asked[7:])
    assert asked[:7] != asked[7:]


def test_a_step_is_a_function_of_the_seed_alone():
    first = PromptMixer(SETS, batch_size=10, seed=1)
    assert first.batch(5) == PromptMixer(SETS[::-1], batch_size=10, seed=1).batch(5)
    assert first.batch(5) != PromptMixer(SETS, batch_size=10, seed=2).batch(5)
    assert first.batch(5) != first.batch(6)


# other orders, and supplies of very different size

SUPPLIES = [
    PromptSet("a", tuple(Prompt(prompt=f"a{i}") for i in range(3)), Origin("own")),
    PromptSet("b", tuple(Prompt(prompt=f"b{i}") for i in range(50)), Origin("own")),
    PromptSet("c", tuple(Prompt(prompt=f"c{i}") for i in range(8)), Origin("own")),
]
ORDERS = ("together", "sorted", "in turns", "one after the other")


def stream(mixer, domain, steps):
    """The indices of a domain's prompts that are asked, in the order in which its stream gives them."""
    return [[i for source, i in mixer.positions(step) if source.domain == domain] for step in range(steps)]


@pytest.mark.parametrize("steps", [3, 7, 10, 11])
@pytest.mark.parametrize("order", ORDERS)
def test_every_prompt_of_a_domain_is_asked_before_any_returns_and_all_return_equally_often(order, steps):
    mixer = PromptMixer(SUPPLIES, batch_size=12, seed=0, order=order, steps=steps)
    for source in SUPPLIES:
        asked = [i for step in stream(mixer, source.domain, steps) for i in step]
        count, size = Counter(asked), len(source.prompts)
        assert len(asked) >= 4
        assert set(count.values()) <= {len(asked) // size, -(-len(asked) // size)}
        assert len(count) == min(size, len(asked))  # without gaps: nothing is left out while something is asked again


@pytest.mark.parametrize("order", ORDERS)
def test_each_order_has_its_own_numbers_of_each_domain(order):
    mixer = PromptMixer(SUPPLIES, batch_size=13, seed=0, order=order, steps=7)  # 13 holds 4 of each of three, one is left out
    found = [mixer.batch(step)[1] for step in range(7)]
    assert all(len(domains) == 12 for domains in found)
    alone = {"in turns": "abcabca", "one after the other": "aaabbcc"}
    if order in alone:
        assert ["".join(sorted(set(domains))) for domains in found] == list(alone[order])
    else:
        assert all(Counter(domains) == {"a": 4, "b": 4, "c": 4} for domains in found)
    in_pieces = [domains == sorted(domains) for domains in found]
    assert all(in_pieces) if order != "together" else not any(in_pieces)


@pytest.mark.parametrize("steps", range(3, 20))
def test_one_after_the_other_divides_the_steps_as_equally_as_can_be(steps):
    mixer = PromptMixer(SUPPLIES, batch_size=3, seed=0, order="one after the other", steps=steps)
    taught = [mixer.batch(step)[1][0] for step in range(steps)]
    assert taught == sorted(taught)
    assert set(Counter(taught).values()) <= {steps // 3, -(-steps // 3)}
    assert set(taught) == {"a", "b", "c"}


@pytest.mark.parametrize("order", ORDERS)
def test_a_run_can_be_taken_up_at_any_step(order):
    """A mixer that has seen every step, and one that begins at a later step, or goes back."""
    whole = PromptMixer(SUPPLIES, batch_size=12, seed=0, order=order, steps=10)
    batches = [whole.batch(step) for step in range(10)]
    assert [PromptMixer(SUPPLIES, batch_size=12, seed=0, order=order, steps=10).batch(step) for step in range(10)] == batches
    assert [whole.batch(step) for step in reversed(range(10))] == batches[::-1]
    other = PromptMixer(SUPPLIES, batch_size=12, seed=1, order=order, steps=10)  # the control
    assert [other.batch(step) for step in range(10)] != batches


@pytest.mark.parametrize("order", ["sorted", "in turns"])
def test_the_order_changes_when_a_domain_is_asked_but_not_which_of_its_prompts_come_next(order):
    """Each domain has one stream, whatever the order takes from it at a step."""
    together = PromptMixer(SUPPLIES, batch_size=12, seed=0)
    other = PromptMixer(SUPPLIES, batch_size=12, seed=0, order=order)
    for source in SUPPLIES:
        ours, theirs = (stream(mixer, source.domain, 12) for mixer in (together, other))
        assert sorted(chain(*ours)) == sorted(chain(*theirs))  # of 50 prompts the same 48
        assert ours != theirs


def test_a_domain_of_three_prompts_repeats_within_a_step_and_evenly():
    mixer = PromptMixer(SUPPLIES, batch_size=24, seed=0)  # eight of each: a domain of three repeats in every step
    for step in range(6):
        count = Counter(text for text in (p.prompt for p in mixer.batch(step)[0]) if text[0] == "a")
        assert sum(count.values()) == 8
        assert set(count) == {"a0", "a1", "a2"}
        assert max(count.values()) <= 4
