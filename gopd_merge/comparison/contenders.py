"""Who is compared: the base, the experts, their static merges and the trained ones, each an adapter on the one base."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gopd_merge.config import MergeConfig
from gopd_merge.distill.backbone import REFERENCE, Backbone, expert
from gopd_merge.errors import InputError
from gopd_merge.eval_config import CompareConfig, EvalConfig
from gopd_merge.experts.base import Base, resolve_base
from gopd_merge.experts.deltas import Updates
from gopd_merge.experts.fingerprint import read_json
from gopd_merge.experts.intake import Expert, read_expert, read_experts
from gopd_merge.plan import MANIFEST
from gopd_merge.server import is_remote

ON_TRIAL = "on-trial"  # the role of an adapter that is put on the base only while it answers


@dataclass(frozen=True)
class Contender:
    """One row of a comparison: a method with its coefficients, and how it gets onto the base."""

    method: str
    kind: Literal["base", "expert", "static", "trained"]
    role: str | None = None  # on the base already; else one of the next two
    folder: Path | None = None
    make: Callable[[], Updates] | None = None  # built when it is needed: some are as large as the base
    home: Backbone | None = None  # where it plays, if not on the base of the others: an expert on a larger one
    parameters: dict[str, Any] | None = None
    alpha: float | None = None  # None as well where domains have different ones: they are in `parameters`
    seed: int | None = None  # of the training
    name: str | None = None  # of the adapter
    sha256: str | None = None
    train_seconds: float = 0.0
    train_tokens: int = 0

    @property
    def slug(self) -> str:
        """What its files are called."""
        parts = [self.method.replace(":", "-").replace("/", "-")]
        if self.seed is not None:
            by_domain = (self.parameters or {}).get("alpha", {})
            alphas = [f"{self.alpha:g}"] if self.alpha is not None else [f"{domain}-{value:g}" for domain, value in by_domain.items()]
            parts += ["alpha", *alphas, "seed", str(self.seed)]
        for name, value in (self.parameters or {}).items():
            if name != "alpha":
                parts += [f"{name}-{value:g}" if isinstance(value, float | int) else _in_a_name(name, value)]
        return "-".join(parts)

    @contextmanager
    def on(self, backbone: Backbone) -> Iterator[str]:
        """Its role, for as long as the block lasts."""
        if self.role is not None:
            yield self.role
            return
        if self.make is not None:
            backbone.add_updates(ON_TRIAL, self.make())
        else:
            assert self.folder is not None
            backbone.load_adapter(self.folder, ON_TRIAL)
        try:
            yield ON_TRIAL
        finally:
            backbone.remove(ON_TRIAL)


def _in_a_name(name: str, value: Any) -> str:
    """A parameter that is no number in the name of a file; what cannot stand there as it is becomes a short hash."""
    text = f"{name}-{value}"
    return text if re.fullmatch(r"[\w.-]{1,40}", text) else f"{name}-{hashlib.sha256(repr(value).encode()).hexdigest()[:8]}"


BASE = Contender("base", "base", role=REFERENCE)


def of_experts(experts: Sequence[Expert], home: Backbone | None = None) -> list[Contender]:
    """The experts as they are, on the base of the others or on their own."""
    return [Contender(f"expert:{e.domain}", "expert", expert(e.domain), home=home, name=e.name, sha256=e.sha256) for e in experts]


def trained(config: MergeConfig, **where: Any) -> Contender:
    """A merge that was trained with this config: OPD where every teacher is copied as it is, else ExOPD, or the method that it names.

    `parameters` hold the domains' λ where they differ, and the options that make it another method than the default one.
    """
    alphas = {domain: config.alpha_of(domain) for domain in config.domains}
    one = next(iter(alphas.values())) if len(set(alphas.values())) == 1 else None
    if config.cancels_alpha:
        one = 1.0
    by_name = "opd" if config.method == "exopd" and config.copies_experts else config.method
    parameters = ({} if one is not None else {"alpha": alphas}) | config.changes
    return Contender(by_name, "trained", alpha=one, parameters=parameters or None, seed=config.seed, **where)


@dataclass(frozen=True)
class Entry:
    """An adapter that was given, and its merge.json where it is a merge."""

    adapter: Expert
    manifest: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """What results call it: its Hub id, or the last part of its path, which is of interest here alone."""
        return self.adapter.name if self.adapter.commit else self.adapter.path.resolve().name

    @property
    def config(self) -> MergeConfig:
        """Of the merge."""
        assert self.manifest is not None
        return MergeConfig.model_validate(self.manifest["config"])

    def contender(self, among_experts: bool) -> Contender:
        """It as a row: by its method if it is a merge; else beside the experts as some adapter, and without them as one of them."""
        found = self.adapter
        if self.manifest is None:
            where: dict[str, Any] = {"folder": found.path, "name": self.name, "sha256": found.sha256}
            return (
                Contender(f"adapter:{found.domain}", "trained", **where)
                if among_experts
                else Contender(f"expert:{found.domain}", "expert", **where)
            )
        seconds = self.manifest.get("seconds", {})
        return trained(
            self.config,
            folder=found.path,
            name=self.name,
            sha256=found.sha256,
            train_seconds=sum(seconds.get(phase, 0.0) for phase in ("rollout", "score", "update")),
            train_tokens=self.manifest.get("tokens", 0),
        )


@dataclass(frozen=True)
class Field:
    """Everything that a comparison reads of adapters and base, checked."""

    entries: tuple[Entry, ...]
    experts: tuple[Expert, ...]  # on that base, in order of domain
    base: Base
    quantize: str
    elsewhere: tuple[Expert, ...] = ()  # experts of a merge from strong to weak, on the larger base: only their prompts count here

    @property
    def merge_config(self) -> MergeConfig | None:
        """The options of the first merge."""
        return next((entry.config for entry in self.entries if entry.manifest is not None), None)

    @property
    def asked(self) -> tuple[Expert, ...]:
        """Whose own prompts are asked: the experts', or where there is no merge those of the adapters themselves."""
        return self.experts or self.elsewhere or tuple(entry.adapter for entry in self.entries)

    @property
    def scorers(self) -> tuple[Expert, ...]:
        """The adapters of that base that can score an open-ended domain."""
        return self.experts or tuple(entry.adapter for entry in self.entries)

    def described_inputs(self) -> dict[str, Any]:
        """For the document: the adapters that everything is made of."""
        return {
            e.domain: {"name": e.name, "commit": e.commit, "sha256": e.sha256, "rank": e.rank, "targets": list(e.targets)}
            for e in self.asked
        }

    def described_base(self) -> dict[str, Any]:
        """For the document."""
        return {"name": self.base.name, "commit": self.base.commit, "quantization": self.quantize}


def read_field(config: EvalConfig, needs_experts: bool) -> Field:
    """The adapters that were given and, for a comparison or where their prompts are asked, the experts behind them.

    Raises InputError for whatever cannot be compared on one base.
    """
    entries = [read_entry(name) for name in config.adapters]
    merges = [entry for entry in entries if entry.manifest is not None]
    given = config.experts if isinstance(config, CompareConfig) else {}
    needs_experts = needs_experts or isinstance(config, CompareConfig)
    if isinstance(config, CompareConfig) and not given:
        _check_all_here(merges)
    experts = read_experts(given) if given else _experts_of(merges) if needs_experts else []
    if isinstance(config, CompareConfig) and not experts:
        raise InputError(f"{config.adapters[0]}: has no {MANIFEST} that says which experts it merges; name them with --experts")
    for entry in merges:
        _check_experts(entry, experts)
    weak = next((entry for entry in merges if entry.config.teacher_base), None)
    if weak and isinstance(config, CompareConfig):
        raise InputError(
            f"{weak.adapter.name}: was distilled from a larger base, so its experts are no rivals on its own; use gopd-merge eval"
        )
    elsewhere, experts = (experts, []) if weak else ([], experts)
    quantizations = {entry.manifest["base"]["quantization"] for entry in merges if entry.manifest}
    if config.quantize is None and len(quantizations) > 1:
        raise InputError(f"{' and '.join(config.adapters)}: merged at different precisions of the base; choose one with --quantize")
    base = config.base or next((entry.config.base for entry in merges if entry.config.base), None)
    quantize = str(config.quantize or next(iter(quantizations), "nf4"))
    return Field(
        entries=tuple(entries),
        experts=tuple(experts),
        base=resolve_base([*experts, *(entry.adapter for entry in entries)], base, "all", quantize),
        quantize=quantize,
        elsewhere=tuple(elsewhere),
    )


def read_entry(name: str) -> Entry:
    """An adapter by its folder or Hub id, or NAME=either. Raises InputError."""
    domain, equals, path = name.partition("=")
    if not equals:
        domain, path = Path(name.partition("@")[0]).name.removesuffix(".lora"), name
    adapter = read_expert(domain, path)
    file = adapter.path / MANIFEST
    if not file.is_file():
        return Entry(adapter, None)
    manifest = read_json(file)
    try:
        if not isinstance(manifest, dict) or not isinstance(manifest["inputs"], dict) or not isinstance(manifest["base"], dict):
            raise TypeError("it describes no merge")
        MergeConfig.model_validate(manifest["config"])
    except (KeyError, TypeError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: not a merge.json of this version ({cause}); merge again, or remove the file") from None
    return Entry(adapter, manifest)


def _check_all_here(merges: Sequence[Entry]) -> None:
    """Raises InputError for a merge with a remote expert, against which nothing can be measured."""
    for entry in merges:
        if away := [domain for domain, name in sorted(entry.config.experts.items()) if is_remote(name)]:
            raise InputError(
                f"{entry.adapter.name}: its {away[0]} expert is behind a server, so it cannot be measured; "
                f"name the adapters with --experts {away[0]}=PATH, or use gopd-merge eval"
            )


def _experts_of(merges: Sequence[Entry]) -> list[Expert]:
    """The experts of the first merge that are not behind a server: where its merge.json says, seen from here or from beside the merge."""
    if not merges:
        return []
    first = merges[0]
    found = {}
    for domain, name in first.config.experts.items():
        if is_remote(name):
            continue
        beside = first.adapter.path.resolve().parent / name
        found[domain] = str(beside) if not Path(name).is_dir() and beside.is_dir() else name
    return read_experts(found)


def _check_experts(entry: Entry, experts: Sequence[Expert]) -> None:
    """A merge is compared with the experts that it was made of, not with others of the same names."""
    assert entry.manifest is not None
    made_of = {domain: row.get("sha256") for domain, row in entry.manifest["inputs"].items()}
    for one in experts:
        if one.domain not in made_of:
            raise InputError(
                f"{entry.adapter.name} merges {' and '.join(sorted(made_of))}, the experts here are "
                f"{' and '.join(e.domain for e in experts)}; compare merges of the same experts"
            )
        if made_of[one.domain] not in (one.sha256, None):  # nothing is known of one behind a server
            raise InputError(
                f"{one.name} is not the {one.domain} expert that {entry.adapter.name} was made of (sha256 {one.sha256[:12]}, "
                f"{str(made_of[one.domain])[:12]} then); say where that one is: --experts {one.domain}=PATH"
            )
