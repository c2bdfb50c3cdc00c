"""Who plays which role in a merge: the config's words for teachers, references and start become loaded models and aims."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch

from gopd_merge.config import BASE, HF, TEACHER_BASE, MergeConfig
from gopd_merge.disk import partial_of
from gopd_merge.distill.backbone import REFERENCE, START, Backbone, expert
from gopd_merge.distill.cast import REMOTE, Cast, Role
from gopd_merge.distill.engines import OtherEngine, Sampler
from gopd_merge.distill.methods import LEARNT_BY_HEART
from gopd_merge.distill.objective import HIDDEN, Aim, Reward
from gopd_merge.distill.remote import TIMEOUT, RemoteTeacher
from gopd_merge.distill.rollout import prompt_lengths
from gopd_merge.distill.sharding import share_out
from gopd_merge.distill.tilt import Rule
from gopd_merge.distill.vllm_engine import Needs, VllmHere
from gopd_merge.distill.vllm_server import VllmServer
from gopd_merge.errors import InputError
from gopd_merge.experts.base import Base, load_base
from gopd_merge.experts.deltas import Updates, load_updates, truncated
from gopd_merge.experts.intake import Expert
from gopd_merge.experts.static import RIVALS
from gopd_merge.machine import resolve_device
from gopd_merge.parallel import ALONE, Processes
from gopd_merge.plan import Inputs
from gopd_merge.server import is_remote


@contextmanager
def assembled(
    backbone: Backbone,
    config: MergeConfig,
    inputs: Inputs,
    note: Callable[[str], None],
    save: Callable[[], None] = lambda: None,
    processes: Processes = ALONE,
) -> Iterator[Cast]:
    """Everybody that the config asks for beside the student's backbone, loaded for as long as the block lasts.

    A student that does not begin at the base is put at its start. `note` is told what the user should know; `save` is called, from any
    thread, when the run begins to wait for a server. Raises InputError for roles that cannot be had.
    """
    with ExitStack() as stack:
        models = {BASE: backbone} | {name: _load(base, experts, config) for name, (base, experts) in inputs.other_models.items()}
        home = models[TEACHER_BASE if inputs.teacher_base else BASE]
        for one in inputs.references.values():
            if isinstance(one, Expert):
                home.add_reference(one)
                stack.callback(home.remove, one.domain)
        if config.start != "none":
            backbone.start_student(_starting_point(config, inputs, note))
            stack.callback(backbone.remove, START)
        cast = Cast(models, aims_of(config, inputs))
        remote = _remote_teachers(config, inputs, cast, note, save, stack)
        cast = replace(cast, remote=remote)
        _check(cast, config)
        if config.shard_base:
            for model in models.values():
                share_out(model, torch.device(resolve_device(config.device)), processes.count)
        cast = replace(cast, engine=_engine(config, inputs, cast, note, save, stack))
        if config.cancels_alpha:
            note("the teacher is its own reference: α cancels, this is plain OPD")
        yield cast


def load_backbone(config: MergeConfig, inputs: Inputs) -> Backbone:
    """The one base with all roles of a merge; without the experts where they are on a base of their own."""
    here = () if inputs.teacher_base else inputs.experts
    options = (config.quantize, config.device, inputs.lora_rank, inputs.targets, config.seed)
    return load_roles(inputs.base, here, *options, on_host=config.shard_base)


def load_roles(
    base: Base,
    experts: Sequence[Expert],
    quantize: str,
    device: str,
    lora_rank: int,
    targets: Sequence[str],
    seed: int,
    on_host: bool = False,
) -> Backbone:
    """The one base with all experts and a fresh student on it."""
    model, tokenizer = load_base(base, quantize, resolve_device(device), on_host)
    backbone = Backbone(model, tokenizer, experts)
    backbone.add_student(lora_rank, targets, seed)
    backbone.check_head()
    return backbone


def aims_of(config: MergeConfig, inputs: Inputs) -> dict[str, Aim]:
    """Each domain's target in terms of roles."""
    home = TEACHER_BASE if inputs.teacher_base else BASE
    teachers = {d: Role(expert(d), REMOTE if d in inputs.remote else home) for d in config.domains}
    default = TEACHER_BASE if inputs.teacher_base else BASE

    def role(name: str, domain: str) -> Role:
        if name in inputs.references:
            found = inputs.references[name]
            return Role(REFERENCE, name) if isinstance(found, Base) else Role(found.domain, home)
        if name == "student-start":
            return Role(START if config.start != "none" else REFERENCE)
        return {BASE: Role(REFERENCE), TEACHER_BASE: Role(REFERENCE, TEACHER_BASE), "teacher": teachers[domain]}[name]

    def aim(domain: str) -> Aim:
        against = role(config.reference or default, domain)
        taught_by = config.domains if config.rotate == "all" else (domain,)
        rewards = tuple(Reward(teachers[other], against, config.weights.get(other, 1.0)) for other in taught_by)
        return Aim(role(config.kl_reference, domain) if config.kl_reference else against, rewards)

    return {domain: aim(domain) for domain in config.domains}


def rule_of(config: MergeConfig) -> Rule:
    """What changes α from token to token."""
    return Rule(config.adaptive == "token", config.deterministic, config.bound)


def load_teachers(config: MergeConfig, inputs: Inputs) -> Backbone:
    """The larger base with the experts, of a merge from strong to weak."""
    assert inputs.teacher_base is not None
    return _load(inputs.teacher_base, inputs.experts, config)


def _load(base: Base, experts: tuple[Expert, ...], config: MergeConfig) -> Backbone:
    model, tokenizer = load_base(base, config.quantize, resolve_device(config.device), on_host=config.shard_base)
    backbone = Backbone(model, tokenizer, experts)
    backbone.check_head()
    return backbone


def _starting_point(config: MergeConfig, inputs: Inputs, note: Callable[[str], None]) -> Updates:
    """The updates that the student begins with, none of more ranks than it has."""
    if inputs.start:
        updates = load_updates(inputs.start)
    else:
        rival = RIVALS[config.start]
        merged = rival.build([load_updates(e) for e in inputs.experts], middle_of(rival.grid), inputs.lora_rank)
        updates = merged.updates
        if merged.lost > 0:
            note(f"--start {config.start}: {100 * merged.lost:.1f} % of its squared norm do not fit into rank {inputs.lora_rank}")
    cut, total, missed = {}, 0.0, 0.0
    for module, update in updates.items():
        cut[module], lost = truncated(update, inputs.lora_rank) if len(update.a) > inputs.lora_rank else (update, 0.0)
        total, missed = total + float((update.b.T @ update.b * (update.a @ update.a.T)).sum()), missed + lost
    if missed > 0:
        note(f"--start {config.start}: {100 * missed / total:.1f} % of its squared norm do not fit into rank {inputs.lora_rank}")
    return cut


def middle_of(grid: tuple[Mapping[str, float | int], ...]) -> dict[str, float | int]:
    """A static merge's parameters before anything is tuned: each in the middle of what tuning would try."""
    names = grid[0].keys()
    values = {name: sorted({point[name] for point in grid}) for name in names}
    return {name: tried[len(tried) // 2] for name, tried in values.items()}


def _remote_teachers(
    config: MergeConfig, inputs: Inputs, cast: Cast, note: Callable[[str], None], save: Callable[[], None], stack: ExitStack
) -> dict[str, RemoteTeacher]:
    """Those behind servers, each asked whether it can teach this run; `stack` closes them. Raises InputError."""
    learnt = config.method in LEARNT_BY_HEART
    if config.method == "sft":  # the data say it all
        return {}
    tokenizer, teachers = cast.backbone.tokenizer, {}
    prompts = {source.domain: [prompt.prompt for prompt in source.prompts] for source in inputs.prompts}
    for domain, location in inputs.remote.items():
        teacher = teachers[domain] = RemoteTeacher(
            location,
            tokenizer,
            cast.vocabulary,
            k=config.top_k if config.estimator == "topk" else 0,
            timeout=max(TIMEOUT, config.remote_patience) if learnt else TIMEOUT,  # it is silent until a response is whole
            patience=config.remote_patience,
            note=note,
            waiting=save,
        )
        stack.callback(teacher.close)
        longest = max(prompt_lengths(tokenizer, prompts[domain])) + config.trained_tokens
        teacher.check_answers(longest) if learnt else teacher.check(longest)
    return teachers


def _engine(
    config: MergeConfig, inputs: Inputs, cast: Cast, note: Callable[[str], None], save: Callable[[], None], stack: ExitStack
) -> OtherEngine | None:
    """Who samples the student's answers, if not the backbone itself: tried on a few prompts; `stack` ends it. Raises InputError."""
    if config.rollout == HF:
        return None
    backbone, base, rank = cast.backbone, inputs.base, inputs.lora_rank
    prompts = [[prompt.prompt for prompt in source.prompts] for source in inputs.prompts]
    longest = max(prompt_lengths(backbone.tokenizer, [prompt for some in prompts for prompt in some])) + config.trained_tokens
    sampler: Sampler
    working = partial_of(config.output)  # what a kill leaves there is removed when the run goes on
    folder = working if working.is_dir() else None
    if is_remote(config.rollout):
        sampler = server = VllmServer(config.rollout, rank, config.remote_patience, note, save)
        stack.callback(server.close)
        server.check(longest)
        folder = folder or config.output.absolute().parent  # where the server may see it
    else:
        needs = Needs(base.location, backbone.model.dtype, config.quantize, rank, longest, config.prompts_per_step, config.seed)
        sampler = VllmHere(needs, note)
    engine = OtherEngine(backbone, cast.vocabulary, sampler, folder, base.name)
    stack.callback(engine.close)
    engine.check([prompt for some in zip(*prompts, strict=False) for prompt in some], config.trained_tokens, note)
    return engine


def _check(cast: Cast, config: MergeConfig) -> None:
    """Raises InputError for what only the loaded models can tell."""
    if config.estimator != HIDDEN:
        return
    if not all(cast.can_mix(aim) for aim in cast.aims.values()):
        raise InputError("--estimator hidden: needs roles that share one output head, and an expert here has its own; use --estimator full")
