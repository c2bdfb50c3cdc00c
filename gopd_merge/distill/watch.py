"""Warnings while a merge runs: its own metrics look like one of the failures of docs/theory.md.

A warning is one line with the numbers it rests on and what to do. It is said once for each domain. It is a sign and no proof:
an expert may really be surer, or longer, than the base.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gopd_merge.distill.windows import (
    STANDARD_ERRORS,
    WINDOW,
    DomainMetrics,
    Window,
    entropy_collapsed,
    kl_rose,
    length_exploded,
    window_of,
)

NO_DIFFERENCE = 1e-4  # nats a token between a student that has just begun and its target
AT_THE_LIMIT = 0.5  # of the responses
ALL = 0.99  # of the responses
DISTANT = 0.3  # nats a token at λ = 1 from the base to an expert; the KL to the target goes by λ²
FAR = 0.5  # of the first window's KL to target: a student that is still, or again, there does not follow
CLIPPED = 0.1  # of the tokens
APART, FURTHER = 0.02, 3.0  # nats a token, and times the first window's: an engine's log-probs that are so far off are another student's


@dataclass(frozen=True)
class Sign:
    """A warning: its line, and whether a run that shows it has diverged, so that going on is a waste."""

    text: str
    diverges: bool


@dataclass(frozen=True)
class Course:
    """One domain's run up to the end of a window."""

    first: Window
    nearest: Window  # the one with the lowest KL to target so far
    previous: Window
    now: Window
    earlier: float  # share of the run's steps at the end of `previous`
    done: float  # and of `now`


class Watch:
    """Looks at every step's metrics; after each window of a domain's own steps it says what looks wrong."""

    def __init__(self, steps: int, window: int = WINDOW, could_begin_nearer: bool = False) -> None:
        """`steps` is how many the whole run has. One that has no two windows is too short to be judged, and hears little.

        `could_begin_nearer`: the student begins at the base, and there is an average of experts that it could begin at.
        """
        self.steps, self.window = steps, window
        self._checks = CHECKS if could_begin_nearer else {kind: check for kind, check in CHECKS.items() if check is not distant}
        self._rows: dict[str, list[DomainMetrics]] = {}  # of the window that is not yet full
        self._courses: dict[str, Course] = {}
        self._said: set[tuple[str, str]] = set()  # (domain, kind)

    def look(self, row: Mapping[str, Any]) -> list[Sign]:
        """New warnings after a step.

        A resumed run looks at the rows of metrics.jsonl first and ignores what it hears: it then goes on as if it had not stopped.

        Args:
            row: one line of metrics.jsonl: `step` from 1, and `domains`, the metrics of each domain that had prompts in the step.
        """
        warnings = []
        for domain, metrics in row["domains"].items():
            rows = self._rows.setdefault(domain, [])
            rows.append(metrics)
            if len(rows) == self.window:
                now = window_of(rows)
                rows.clear()
                warnings += self._judge(domain, now, row["step"] / self.steps)
        return warnings

    def _judge(self, domain: str, now: Window, done: float) -> list[Sign]:
        before = self._courses.get(domain, Course(now, now, now, now, done, done))
        course = replace(before, previous=before.now, now=now, earlier=before.done, done=done)
        warnings = []
        for kind, check in self._checks.items():
            warning = check(course)
            if warning and (domain, kind) not in self._said:
                self._said.add((domain, kind))
                warnings.append(Sign(f"{domain}: {warning}", kind in DIVERGENCE))
        if kl_known(now) < kl_known(course.nearest):
            course = replace(course, nearest=now)
        self._courses[domain] = course
        return warnings


def no_difference(course: Course) -> str | None:
    """Judged on the first window alone: later a student that has learnt everything is as near."""
    now = course.now
    if now is not course.first or now.reward is None or now.reward_error is None:
        return None
    if (now.alpha is not None and now.alpha < FAR) or kl_known(now) >= NO_DIFFERENCE:
        return None  # with little λ the target is near whatever the expert has learnt
    if abs(now.reward) > STANDARD_ERRORS * now.reward_error:
        return None
    return (
        f"the expert does not differ from its reference on these prompts (KL to target {now.kl_to_target:.2g}, reward {now.reward:+.2g} "
        "nats a token), so --alpha has no effect; check that this is the right adapter and that it was trained for such prompts"
    )


def distant(course: Course) -> str | None:
    """Judged on the first window alone: what the base says, the expert would never say, so that it has to judge the wrong answers."""
    now = course.now
    if now is not course.first or now.kl_to_target is None or now.kl_to_target < DISTANT * max(1.0, now.alpha or 1.0) ** 2:
        return None
    return (
        f"the base is far from the expert (KL to target {now.kl_to_target:.3g} nats a token at the start), whose answers it hardly ever "
        "gives; begin nearer with --start average, or give the student many --steps"
    )


def entropy(course: Course) -> str | None:
    """Only beyond the expert: at λ = 1 the student shall become as sure as the expert is."""
    first, now = course.first, course.now
    if not entropy_collapsed(first, now) or (now.alpha is not None and now.alpha <= 1):
        return None
    return (
        f"entropy fell from {first.entropy:.3g} to {now.entropy:.3g} nats a token; if the expert is not that sure itself, "
        f"a side effect is amplified: read some answers{or_less_alpha(now)}"
    )


def limit(course: Course) -> str | None:
    """Cut answers teach nothing about how to end. Those that a horizon cut were meant to be."""
    capped = course.now.capped
    return at_the_limit(course) if capped is not None and AT_THE_LIMIT <= capped < ALL else None


def endless(course: Course) -> str | None:
    """The same of all answers: nothing is left to learn an end from."""
    capped = course.now.capped
    return at_the_limit(course) if capped is not None and capped >= ALL else None


def at_the_limit(course: Course) -> str | None:
    """What to say of answers that are cut."""
    first, now = course.first, course.now
    if now.capped is None or first.capped is None:
        return None
    if first.capped >= AT_THE_LIMIT:
        return f"{now.capped:.0%} of the responses end at the limit of their length; raise --max-new-tokens"
    return (
        f"{now.capped:.0%} of the responses end at the limit of their length, {first.capped:.0%} did at the start; read some answers: "
        f"if they are not finished raise --max-new-tokens{or_less_alpha(now, ', if they repeat themselves ')}"
    )


def length(course: Course) -> str | None:
    """Left to `limit` where most responses end there."""
    first, now = course.first, course.now
    if (now.capped is not None and now.capped >= AT_THE_LIMIT) or not length_exploded(first, now):
        return None
    cut = "" if now.capped is None else f" ({now.capped:.0%} at the limit)"
    return (
        f"responses grew from {first.response_length:.0f} to {now.response_length:.0f} tokens{cut}; "
        f"if the expert's own are not that long, a side effect is amplified: read some answers{or_less_alpha(now)}"
    )


def rising_kl(course: Course) -> str | None:
    """Back to where it was at the start: what rises and stays low is a student that has arrived and wobbles."""
    nearest, now = course.nearest, course.now
    if not kl_rose(nearest, now) or not is_far(course):
        return None
    return (
        f"KL to target rose from {nearest.kl_to_target:.3g} to {now.kl_to_target:.3g} nats a token: the student is thrown off; "
        f"lower --learning-rate{or_less_alpha(now)}"
    )


def not_followed(course: Course) -> str | None:
    """Judged in the last quarter, where the learning rate is too small for much to change."""
    first, now = course.first, course.now
    if course.done < 0.75 or now is first or kl_known(first) < NO_DIFFERENCE or kl_rose(course.nearest, now) or not is_far(course):
        return None
    return (
        f"KL to target is {now.kl_to_target:.3g} nats a token after {course.done:.0%} of the run and began at {first.kl_to_target:.3g}: "
        f"the student does not get to its target; give it more --steps or a higher --learning-rate{or_less_alpha(now)}"
    )


def clipped(course: Course) -> str | None:
    """A bound is meant for the odd token."""
    share = course.now.clipped_share
    if share is None or share < CLIPPED:
        return None
    return f"--bound cuts off the reward of {share:.0%} of the tokens, and with it what the expert learnt; raise --bound"


def disliked(course: Course) -> str | None:
    """A student like the base earns −KL(base ‖ expert), below zero; one at its target, with λ ≥ 1, earns more than zero.

    So it is judged by two windows of the second half.
    """
    windows = (course.previous, course.now)
    if course.earlier <= 0.5 or course.now is course.first or any(w.alpha is not None and w.alpha < 1 for w in windows):
        return None
    if not all(w.reward is not None and w.reward_error is not None and w.reward < -STANDARD_ERRORS * w.reward_error for w in windows):
        return None
    return (
        f"the expert likes the student's answers less than its reference does (reward {course.now.reward:+.3g} nats a token after "
        f"{course.done:.0%} of the run): what it learnt does not arrive; check that these are prompts of its domain, "
        "or give the student more --steps or a higher --learning-rate"
    )


def stale(course: Course) -> str | None:
    """What samples holds the base, but no longer the student of this moment: a server that forgot an adapter says nothing of it."""
    first, now = course.first.engine_gap, course.now.engine_gap
    if first is None or now is None or now < max(APART, FURTHER * first):
        return None
    return (
        f"the log-probs of --rollout are {now:.2g} nats a token from the student's, {first:.2g} at the start: it may sample from another "
        "adapter; see its log, and compare with --rollout hf"
    )


CHECKS: dict[str, Callable[[Course], str | None]] = {
    check.__name__: check
    for check in (no_difference, distant, entropy, limit, endless, length, rising_kl, not_followed, clipped, disliked, stale)
}
DIVERGENCE = {check.__name__ for check in (entropy, endless, rising_kl)}  # what --stop-on-divergence ends a run for


def kl_known(window: Window) -> float:
    """Infinite where it was not measured: never near."""
    return float("inf") if window.kl_to_target is None else window.kl_to_target


def is_far(course: Course) -> bool:
    """At least half as far from the target as at the start. A λ that rose moved the target itself away, by about its square."""
    first, now = course.first, course.now
    if now.kl_to_target is None or first.kl_to_target is None:
        return False
    moved = 1.0
    if first.alpha is not None and now.alpha is not None:
        moved = max(1.0, now.alpha / max(first.alpha, FAR)) ** 2
    return now.kl_to_target > FAR * first.kl_to_target * moved


def or_less_alpha(window: Window, joint: str = ", or ") -> str:
    """How most advice ends, unless there is no extrapolation to take back."""
    if window.alpha is None:
        return f"{joint}lower --alpha"
    return f"{joint}lower --alpha (now {window.alpha:.3g})" if window.alpha > 1 else ""
