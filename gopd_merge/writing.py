"""Prompts that experts write themselves, for `--prompts synth`: sampled, sifted, kept in the run's folder, and never written twice."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from gopd_merge.casting import load_teachers
from gopd_merge.config import MergeConfig
from gopd_merge.disk import sync, write_json_lines
from gopd_merge.distill.backbone import Backbone, expert
from gopd_merge.distill.inventing import Opening, departure, opening_of, write
from gopd_merge.distill.rollout import generate, prompt_lengths, row_seeds, stop_ids
from gopd_merge.distillation import Listener
from gopd_merge.errors import GopdError
from gopd_merge.gathering import suspects_of
from gopd_merge.plan import Inputs
from gopd_merge.prompts.sources import Prompt, PromptSet, counted, read_source
from gopd_merge.prompts.synthesis import Candidate, Mark, counts_in, own, readable, remedy, row

FOLDER = Path("prompts") / "synth"
LEFT_OUT = ".left_out.jsonl"  # what follows the domain in the name of the file with what was not kept
ROUNDS = 8  # of as many candidates as prompts are wanted, at most
ANSWER = 32  # tokens of an answer on which an expert is compared with the base


def with_written(backbone: Backbone, config: MergeConfig, inputs: Inputs, folder: Path, listener: Listener) -> Inputs:
    """The inputs with the prompts that the experts are to write, if any are; those that are in the folder are taken from there.

    They are functions of the seed, the experts and the base. Raises GopdError where too few are left.
    """
    missing = [source for source in inputs.prompts if source.is_synthetic and not source.prompts]
    if not missing:
        return inputs
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    found = {source.domain: _taken(source, place) for source in missing if (place / f"{source.domain}.jsonl").is_file()}
    if len(found) < len(missing):
        writers = load_teachers(config, inputs) if inputs.teacher_base else backbone
        for source in missing:
            if source.domain not in found:
                listener.phase(f"{source.domain}: its expert writes prompts")
                found[source.domain] = Writer(writers, config, inputs, source, listener).write(place)
                listener.note(_told(found[source.domain]))
    return replace(inputs, prompts=tuple(found.get(source.domain, source) for source in inputs.prompts))


def _taken(source: PromptSet, place: Path) -> PromptSet:
    """The set as an earlier run wrote it. Lengths are only wanted before there are prompts."""
    dropped = counts_in(place / f"{source.domain}{LEFT_OUT}")
    prompts = read_source(source.domain, str(place / f"{source.domain}.jsonl")).prompts
    origin = replace(source.origin, dropped=dropped, read=len(prompts) + sum(dropped.values()))
    return replace(source, prompts=prompts, origin=origin)


def _told(source: PromptSet) -> str:
    left_out = f"; left out: {counted(source.origin.dropped)}" if source.origin.dropped else ""
    return f"{source.domain}: {len(source.prompts):,} of the {source.origin.read:,} prompts that its expert wrote are kept{left_out}"


class Writer:
    """One expert, which writes until enough of its prompts are kept."""

    def __init__(self, backbone: Backbone, config: MergeConfig, inputs: Inputs, source: PromptSet, listener: Listener) -> None:
        self.backbone, self.config, self.domain, self.listener = backbone, config, source.domain, listener
        self.wanted, self.longest = source.size, max(source.lengths)
        self.least = min(self.wanted, config.prompts_per_step // len(config.experts))
        self.opening: Opening = opening_of(backbone.tokenizer, stop_ids(backbone))
        self.experts = [source.domain, *(e.domain for e in inputs.experts if e.domain != source.domain)]
        suspects = [s for name in config.decontaminate for s in suspects_of(name, {e.domain: e.path for e in inputs.experts})]
        self.known: Callable[[str], str | None] = lambda text: next((f"in {one.name}" for one in suspects if one.holds(text)), None)
        self.source, self.candidates, self.ratios = source, list[Candidate](), list[float]()
        self.marks: dict[int, Mark] = {}

    def write(self, place: Path) -> PromptSet:
        """The set with its prompts, after both files are on the disk. Raises GopdError where too few are kept."""
        why: list[str | None] = []
        for number in range(ROUNDS):
            self._sample(number)
            why = self._sifted()
            kept = why.count(None)
            self.listener.evaluating(min(kept, self.wanted), self.wanted, f"{self.domain} writes prompts")
            if kept >= self.wanted or (number and not kept):
                break
        chosen = [at for at, reason in enumerate(why) if reason is None][: self.wanted]
        last = chosen[-1] if len(chosen) == self.wanted else len(why) - 1  # what comes after it was not needed
        dropped = Counter(reason for reason in why[: last + 1] if reason is not None)
        if len(chosen) < self.least:
            raise GopdError(
                f"{self.domain}=synth: of {len(why):,} prompts that the expert wrote {len(chosen):,} are left, fewer than the "
                f"{self.least:,} of a step ({counted(dropped)}); {remedy(dropped)}"
            )
        left_out = [row(self.candidates[at], self.marks.get(at), why[at]) for at in range(last + 1) if why[at] is not None]
        write_json_lines(place / f"{self.domain}{LEFT_OUT}", left_out)
        partial = place / f"{self.domain}.jsonl.partial"
        write_json_lines(partial, [row(self.candidates[at], self.marks[at]) for at in chosen])
        sync(partial)
        partial.replace(place / f"{self.domain}.jsonl")  # its presence means that both are whole
        sync(place)
        prompts = tuple(Prompt(prompt=self.candidates[at].text) for at in chosen)
        origin = replace(self.source.origin, dropped=dict(dropped), read=last + 1)
        return replace(self.source, prompts=prompts, origin=origin)

    def _sample(self, number: int) -> None:
        """One round of candidates, in the run's batches."""
        seeds = row_seeds(self.config.seed, "prompts", self.domain, number, count=self.wanted)
        size, role = self.config.batch_size, expert(self.domain)
        for start in range(0, self.wanted, size):
            said = write(self.backbone, role, self.opening, min(self.config.synth_tokens, self.longest), seeds[start : start + size])
            measured = departure(self.backbone, said.rollout, [role], *self._sizes)
            lengths = prompt_lengths(self.backbone.tokenizer, said.texts)
            for text, ended, is_text, tokens, length in zip(said.texts, said.ended, said.is_text, said.lengths, lengths, strict=True):
                self.candidates.append(Candidate(text, tokens, ended and length <= self.longest, is_text))
            self.ratios += measured.ratios

    def _sifted(self) -> list[str | None]:
        """Why each candidate is left out; None for what is kept. What passes the first tests is answered, to see whose domain it is of."""
        why = readable(self.candidates, self.known)
        left = [at for at, reason in enumerate(why) if reason is None]
        fresh = [at for at in left if at not in self.marks]
        for start in range(0, len(fresh), self.config.batch_size):
            self._mark(fresh[start : start + self.config.batch_size])
        for at, reason in zip(left, own([self.marks[at] for at in left], self.domain), strict=True):
            why[at] = reason
        return why

    def _mark(self, rows: Sequence[int]) -> None:
        """Let the expert answer these candidates, and see how far it and the other experts depart from the base there."""
        texts, seeds = (
            [self.candidates[at].text for at in rows],
            row_seeds(self.config.seed, "answers", self.domain, rows[0], count=len(rows)),
        )
        tokens = min(ANSWER, self.config.trained_tokens)
        rollout = generate(self.backbone, expert(self.domain), texts, [self.domain] * len(rows), tokens, seeds)
        found = departure(self.backbone, rollout, [expert(domain) for domain in self.experts], *self._sizes)
        for at, *divergences in zip(rows, *found.divergences, strict=True):
            self.marks[at] = Mark(self.ratios[at], dict(zip(self.experts, divergences, strict=True)))

    @property
    def _sizes(self) -> tuple[int, int]:
        return self.config.micro_batch_size, self.config.chunk_tokens
