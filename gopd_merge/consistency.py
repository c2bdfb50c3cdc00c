"""Options of a merge that mean nothing together, and what to say about them. No torch."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gopd_merge.config import MergeConfig

AUTO = "auto"
COPYING = ("opd", "seqkd", "sft")  # methods without a reward scale
MOVING = ("alpha_from", "adaptive", "bound", "deterministic")  # options that change α, by step or token, or what it multiplies
SCALED = ("reference", "kl_reference", "weights", *MOVING)  # options of a target
Rule = tuple[bool, str]  # whether it is broken, what to say then


def contradiction(config: "MergeConfig") -> str | None:
    """The first that is found."""
    rules = (*_of_method(config), *_of_alpha(config), *_of_teachers(config), *_of_bases(config), *_of_remote(config), *_of_machine(config))
    return next((text for broken, text in rules if broken), None)


def _of_method(config: "MergeConfig") -> Iterator[Rule]:
    method, count = config.method, len(config.experts)
    yield (
        method in COPYING and config.alpha != 1,
        f"--method {method} copies the experts: --alpha {config.alpha} means nothing; leave it out, or give 1",
    )
    has_own_loss = method in ("seqkd", "sft") and config.estimator != "full"
    yield has_own_loss, f"--method {method} has a loss of its own; leave out --estimator {config.estimator}"
    meaningless = _first_given(config, SCALED)
    yield method in ("seqkd", "sft") and meaningless is not None, f"--method {method} has no target; leave out {meaningless}"
    moved = _first_given(config, ("alpha_from", "adaptive", "deterministic"))
    yield method == "opd" and moved is not None, f"--method opd keeps α at 1; leave out {moved}"
    off_policy = method == "rkl" and config.estimator == "sampled"
    yield off_policy, "--method rkl learns on what the experts write, --estimator sampled on what the student writes; use full"
    unanswered = method == "sft" and "synth" in config.prompts.values()
    yield unanswered, "--method sft learns the responses in the data, and prompts that experts write have none; leave out --prompts synth"
    says_who = config.rotate != "prompt" and method in ("alternate", "seqkd", "sft", "rkl")
    yield says_who, f"--method {method} says itself who teaches when; leave out --rotate {config.rotate}"
    unasked = config.rollout != "hf" and method in ("seqkd", "sft", "rkl")
    yield unasked, f"--method {method} learns what others wrote, the student samples nothing; leave out --rollout {config.rollout}"
    too_few = method == "alternate" and config.steps < count
    yield too_few, f"--steps {config.steps}: --method alternate needs a step for each of the {count} experts; give {count} or more"
    beyond = config.horizon is not None and config.horizon > config.max_new_tokens
    yield (
        beyond,
        f"--horizon {config.horizon} is beyond the end of a response; leave it out, or raise --max-new-tokens {config.max_new_tokens}",
    )
    alone = config.balance and (config.rotate != "prompt" or method == "alternate")
    yield alone, "--balance compares the domains of a batch; leave out --rotate and --method alternate"


def _first_given(config: "MergeConfig", names: Sequence[str]) -> str | None:
    """The flag of the first option among these that is not its default."""
    given = (name for name in names if getattr(config, name) != type(config).model_fields[name].default)
    return next((f"--{name.replace('_', '-')}" for name in given), None)


def _of_alpha(config: "MergeConfig") -> Iterator[Rule]:
    moving = config.adaptive == "run"
    yield config.alpha == AUTO and moving, "--alpha auto chooses one α for the run, --adaptive run changes it; choose one"
    yield config.alpha == AUTO and config.alpha_from is not None, "--alpha auto and --alpha-from both choose α; choose one"
    yield config.alpha_from is not None and moving, "--alpha-from and --adaptive run both move α; choose one"
    known = config.reference in (None, "base") and config.kl_reference in (None, "base")
    yield config.alpha == AUTO and not known, "--alpha auto samples experts beside their base; with another reference give a number"
    given = config.alpha.values() if isinstance(config.alpha, dict) else [] if config.alpha == AUTO else [float(config.alpha)]
    outside = next((alpha for alpha in given if not 1 <= alpha <= config.alpha_max), None)
    begins = moving and outside is not None
    yield begins, f"--adaptive run begins at --alpha {outside}; give one between 1 and --alpha-max {config.alpha_max:g}"


def _of_teachers(config: "MergeConfig") -> Iterator[Rule]:
    cancelled = _first_given(config, MOVING)
    yield config.reference == "teacher" and cancelled is not None, f"--reference teacher: α cancels out; leave out {cancelled}"
    at_once, references = config.rotate == "all", (config.reference, config.kl_reference)
    without = config.reference == "teacher" and config.kl_reference not in (None, "teacher")
    yield without, f"--reference teacher takes the teachers' part out, only --kl-reference {config.kl_reference} is left; choose one"
    yield at_once and "teacher" in references, "--rotate all: all experts teach at once, so none is the reference; leave out teacher"
    yield at_once and isinstance(config.alpha, dict), "--rotate all takes one --alpha; say how much of each expert with --weights"
    yield at_once and config.alpha == AUTO, "--alpha auto chooses for each expert alone, --rotate all takes one α; give a number"
    apart = config.estimator == "hidden" and (config.bound is not None or config.teacher_base is not None)
    yield apart, "--estimator hidden compares hidden states of one base; leave out --bound and --teacher-base"


def _of_bases(config: "MergeConfig") -> Iterator[Rule]:
    larger = config.teacher_base is not None
    yield larger and config.base is None, "--teacher-base is what the experts are on; name the student's own with --base"
    is_adapter = "/" in config.start or Path(config.start).is_dir()  # a Hub id, or a folder; else the name of a static merge
    made_of_experts = larger and config.start != "none" and not is_adapter
    yield made_of_experts, f"--start {config.start} would be made of adapters of --teacher-base; give none, or an adapter of --base"
    missing = "teacher-base" in (config.reference, config.kl_reference) and not larger
    yield missing, "teacher-base as a reference needs --teacher-base; the experts' own base is called base"
    yield (
        larger and config.alpha == AUTO,
        "--alpha auto samples experts and student's reference on one base; with --teacher-base give a number",
    )


def _of_remote(config: "MergeConfig") -> Iterator[Rule]:
    """A teacher behind a server tells the log-probabilities of a few tokens, and nothing else."""
    remote = [domain for domain, path in config.experts.items() if re.match("https?://", path, re.IGNORECASE)]
    if not remote:
        return
    who = f"{', '.join(remote)}: a teacher behind a server"
    learnt = config.method in COPYING[1:]
    whole = config.estimator not in ("sampled", "topk") and not learnt
    yield whole, f"{who} tells no whole distribution; add --estimator topk or sampled"
    guarded = config.adaptive == "token" or config.bound is not None or config.deterministic is not None
    yield guarded, f"{who} tells no whole distribution; leave out --adaptive token, --bound and --deterministic"
    yield config.rotate == "all", f"{who} teaches alone; leave out --rotate all"
    yield config.method == "rkl", f"{who} scores what the student writes; leave out --method rkl"
    default = "teacher-base" if config.teacher_base else "base"
    reference = config.reference or default
    another = (config.kl_reference or reference) != reference or reference == "teacher"
    yield another, f"{who} needs one reference that is here; leave out --kl-reference and --reference teacher"
    yield bool(config.weights), f"{who} takes no --weights; give --alpha DOMAIN=NUMBER"
    yield config.alpha == AUTO, f"{who} cannot be sampled beside the reference, which --alpha auto does; give a number"


def _of_machine(config: "MergeConfig") -> Iterator[Rule]:
    yield (
        config.shard_base and config.eval,
        "--shard-base: no process can run the base alone, so nothing can be measured at the end; add --no-eval, and use gopd-merge compare "
        "where the base fits",
    )
