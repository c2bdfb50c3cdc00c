"""The target of every response token, from the hidden states of the roles that its domain's aim names.

Where the roles of a model share one frozen head the target needs H numbers a token and model: the mixed hidden state. Where a role has
a head of its own, or log-ratios are bounded, hidden states are kept per role and their logits are mixed after projection.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gopd_merge.distill.backbone import REFERENCE, Backbone
from gopd_merge.distill.batches import MicroBatch, micro_batches
from gopd_merge.distill.cast import REMOTE, Cast, Role
from gopd_merge.distill.fused import normalise_
from gopd_merge.distill.objective import Aim, coarse, spread_tail
from gopd_merge.distill.remote_target import top_k_target
from gopd_merge.distill.rollout import Rollout
from gopd_merge.distill.sizes import PROBED_TOKENS
from gopd_merge.distill.tilt import PLAIN, Rule


@dataclass(frozen=True)
class Scale:
    """λ of a step: by domain, and what changes it from token to token."""

    alphas: Mapping[str, float]
    rule: Rule = PLAIN
    measured: bool = False  # run every role, even where λ leaves one out of the target: its reward is wanted

    @property
    def needs_all_roles(self) -> bool:
        """Whether a role must be run whatever its part in the target is."""
        return self.rule != PLAIN or self.measured


@dataclass(frozen=True)
class Apart:
    """The target of some tokens by role, where their logits must be mixed after projection."""

    tokens: Tensor  # (n,) indices into the rollout's, ascending
    aim: Aim
    alphas: Tensor  # (n, rewards)
    hidden: Mapping[Role, Tensor]  # (n, H) each
    rule: Rule

    def logits(self, cast: Cast, rows: Tensor) -> Tensor:
        """(m, V) unnormalised logits of q for the rows (m,) of these tokens."""
        projected = {role: cast.logits(role, hidden[rows]) for role, hidden in self.hidden.items()}
        return self.rule.target_logits(self.aim, self.alphas[rows], projected)


@dataclass(frozen=True)
class Known:
    """The target of some tokens where the teacher's server tells only a part of it."""

    tokens: Tensor  # (n,)
    top_ids: Tensor  # (n, k)
    log_q_top: Tensor  # (n, k)
    log_q_tail: Tensor | None  # (n,); None where only the sampled token is known: then log_q_top is not normalised


@dataclass(frozen=True)
class Target:
    """What the student is brought to. Row n speaks of the n-th response token of the rollout."""

    mixed: Mapping[str, Tensor]  # by model: (N, H) float32
    apart: tuple[Apart, ...]
    known: tuple[Known, ...]
    probed: Tensor  # (S,) indices of the tokens whose reward is measured
    reward: Tensor  # (S,) Σ w log π_T/π_r of the sampled token; NaN where one of them was not needed
    keep_log_prob: Tensor  # (S,) log π_kl of it; NaN where that was not needed
    alpha: Tensor  # (N,) the λ that was used, the mean over teachers
    clipped: Tensor  # (S,) 1 where the bound cut log π_T/π_r of the sampled token, else 0; NaN without a bound

    def log_probs(self, cast: Cast, rows: Tensor, student_logits: Tensor, top_k: int = 0) -> Tensor:
        """(n, V) log q of the tokens `rows` (n,), float32. What a remote teacher did not tell is filled in from the student's logits.

        With `top_k` teachers that are here tell no more than so many tokens either.
        """
        log_q = self._of_mixed(cast, rows) if self.mixed else torch.full_like(student_logits, float("nan"))
        for part in self.apart:
            here, there = _where(part.tokens, rows)
            if len(here):
                log_q[here] = normalise_(part.logits(cast, there))
        if top_k:
            log_q = coarse(student_logits, log_q, top_k)
        for known in self.known:
            here, there = _where(known.tokens, rows)
            if not len(here):
                continue
            ids, top = known.top_ids[there], known.log_q_top[there]
            if known.log_q_tail is None:
                log_q[here] = torch.full_like(student_logits[here], float("nan")).scatter(-1, ids, top)
            else:
                log_q[here] = spread_tail(student_logits[here], ids, top, known.log_q_tail[there])
        return log_q

    def _of_mixed(self, cast: Cast, rows: Tensor) -> Tensor:
        """(n, V) log q of tokens whose hidden states are mixed, one projection a model."""
        logits = None
        for model, mixed in self.mixed.items():
            projected = cast.logits(Role(REFERENCE, model), mixed[rows])
            logits = projected if logits is None else logits.add_(projected)
        assert logits is not None
        return normalise_(logits)


def unscored(rollout: Rollout) -> Target:
    """For a loss that has no target: all of it unknown."""
    unknown = torch.full((rollout.num_tokens,), float("nan"), device=rollout.ids.device)
    probed = _probed_tokens(rollout)
    return Target({}, (), (), probed, unknown[probed], unknown[probed], unknown, unknown[probed])


@dataclass(frozen=True)
class _Scored:
    """The tokens of one domain in one micro-batch."""

    tokens: Tensor  # (n,) indices into the rollout's
    ids: Tensor  # (n,)
    aim: Aim
    alphas: Tensor  # (n, rewards)
    hidden: Mapping[Role, Tensor]  # (n, H)


@torch.no_grad()
def score(cast: Cast, rollout: Rollout, scale: Scale, micro_batch_size: int, chunk_tokens: int, top_k: int = 0) -> Target:
    """Score every response by the roles of its own domain's aim, those of one model in one mixed batch.

    Args:
        cast: with an aim for each domain of the rollout. Raises KeyError for a domain without one.
        rollout: B prompts and responses.
        scale: λ.
        micro_batch_size: responses scored at once; each is run once per role that its target needs.
        chunk_tokens: tokens projected at once, where λ looks at log-ratios.
        top_k: tokens that a remote teacher is asked for at each place; 0: the sampled one alone.
    """
    num_tokens, device = rollout.num_tokens, rollout.ids.device
    mixed: dict[str, Tensor] = {}
    apart: list[Apart] = []
    known: list[Known] = []
    probed = _probed_tokens(rollout)
    reward, keep, alpha, clipped = torch.full((4, num_tokens), float("nan"), device=device)
    with cast.float_heads():
        for part in micro_batches(rollout, micro_batch_size):
            for domain, one in _score_part(cast, part, scale, chunk_tokens).items():
                alpha[one.tokens] = one.alphas.mean(-1)
                if domain in cast.remote:
                    told, log_teacher, log_keep = _ask_remote(cast, domain, rollout, part, one, top_k, chunk_tokens)
                    known.append(told)
                    reward[one.tokens], keep[one.tokens] = log_teacher - log_keep, log_keep
                    continue
                _probe(cast, one, torch.isin(one.tokens, probed), scale.rule.bound, chunk_tokens, reward, keep, clipped)
                if scale.rule.bound is None and cast.can_mix(one.aim):
                    _mix(one, mixed, num_tokens)
                else:
                    apart.append(Apart(one.tokens, one.aim, one.alphas, one.hidden, scale.rule))
    return Target(mixed, tuple(apart), tuple(known), probed, reward[probed], keep[probed], alpha, clipped[probed])


def _mix(one: _Scored, mixed: dict[str, Tensor], num_tokens: int) -> None:
    """Add what each role has in the target to the mixed hidden states (N, H) of its model."""
    for role, weight in one.aim.coefficients(list(one.alphas.T.unsqueeze(-1))).items():
        hidden = one.hidden.get(role)
        if hidden is not None:  # a role whose part is zero everywhere was not run
            total = mixed.setdefault(role.model, torch.zeros(num_tokens, hidden.shape[-1], device=hidden.device))
            total.index_add_(0, one.tokens, hidden.float() * weight)


def _score_part(cast: Cast, part: MicroBatch, scale: Scale, chunk_tokens: int) -> dict[str, _Scored]:
    """The micro-batch by domain: its rows are repeated once for each role that they need."""
    rows_of: dict[Role, list[int]] = {}
    for row, domain in enumerate(part.domains):
        for role in _needed(cast.aims[domain], scale, domain):
            rows_of.setdefault(role, []).append(row)
    hidden = cast.hidden(rows_of, part.ids)
    ids = part.response_ids()
    scored = {}
    for domain in sorted(set(part.domains)):
        aim = cast.aims[domain]
        of_domain = torch.tensor([other == domain for other in part.domains], device=ids.device)  # (b,)
        inside = of_domain[part.token_row].nonzero().squeeze(1)  # (n',)
        rows, columns = part.token_row[inside], part.token_column[inside]
        own = {}
        for role in _needed(aim, scale, domain):
            place = torch.zeros(len(part.domains), dtype=torch.long, device=ids.device)  # (b,) where the role has each row
            place[rows_of[role]] = torch.arange(len(rows_of[role]), device=ids.device)
            own[role] = hidden[role][place[rows], columns]  # (n', H)
        alphas = torch.full((len(inside), len(aim.rewards)), scale.alphas[domain], device=ids.device)
        if scale.rule.moves_alpha:
            chunks = [slice(start, start + chunk_tokens) for start in range(0, len(alphas), chunk_tokens)]
            logits = ({role: cast.logits(role, h[at]) for role, h in own.items()} for at in chunks)  # one at a time
            alphas = torch.cat([scale.rule.alphas(aim, alphas[at], one) for at, one in zip(chunks, logits, strict=True)])
        scored[domain] = _Scored(part.tokens[inside], ids[inside], aim, alphas, own)
    return scored


def _needed(aim: Aim, scale: Scale, domain: str) -> list[Role]:
    """The roles that must be run here for a domain's prompts."""
    if any(reward.teacher.model == REMOTE for reward in aim.rewards):
        return [aim.keep]
    roles = aim.roles if scale.needs_all_roles else aim.coefficients([scale.alphas[domain]] * len(aim.rewards))
    return list(roles)


def _probe(
    cast: Cast, one: _Scored, inside: Tensor, bound: float | None, chunk_tokens: int, reward: Tensor, keep: Tensor, clipped: Tensor
) -> None:
    """Write what is measured of the probed tokens among `one`'s, where the roles for it were run."""
    tokens, ids = one.tokens[inside], one.ids[inside]
    log_probs = {role: _log_probs_of(cast, role, hidden[inside], ids, chunk_tokens) for role, hidden in one.hidden.items()}
    if one.aim.keep in log_probs:
        keep[tokens] = log_probs[one.aim.keep]
    if all(r.teacher in log_probs and r.against in log_probs for r in one.aim.rewards):
        ratios = [log_probs[r.teacher] - log_probs[r.against] for r in one.aim.rewards]  # (s,) each
        weights = [r.weight for r in one.aim.rewards]
        reward[tokens] = torch.stack([ratio * weight for ratio, weight in zip(ratios, weights, strict=True)]).sum(0)
        if bound is not None:
            clipped[tokens] = (torch.stack(ratios).abs() > bound).any(0).float()


def _log_probs_of(cast: Cast, role: Role, hidden: Tensor, ids: Tensor, chunk_tokens: int) -> Tensor:
    """(s,) log-probabilities that a role gives the tokens `ids`, from its hidden states (s, H)."""
    chunks = zip(torch.split(hidden, chunk_tokens), torch.split(ids, chunk_tokens), strict=True)
    return torch.cat([normalise_(cast.logits(role, h)).gather(-1, i.unsqueeze(-1)).squeeze(-1) for h, i in chunks])


def _ask_remote(
    cast: Cast, domain: str, rollout: Rollout, part: MicroBatch, one: _Scored, top_k: int, chunk_tokens: int
) -> tuple[Known, Tensor, Tensor]:
    """What a remote teacher tells of one domain's tokens: the target from it, log π_T and log π_kl of the sampled tokens (n,)."""
    rows = [row for row, other in zip(part.rows.tolist(), part.domains, strict=True) if other == domain]
    sequences = [rollout.ids[row][rollout.attention_mask[row].bool()].tolist() for row in rows]  # without padding
    starts = [len(ids) - int(rollout.response_mask[row].sum()) for ids, row in zip(sequences, rows, strict=True)]
    told = cast.remote[domain].score(sequences, starts)
    device = one.ids.device
    log_teacher = told.log_probs.to(device)  # (n,)
    alpha, ids = one.alphas[:, 0], one.ids.unsqueeze(-1)
    log_keep = torch.zeros_like(log_teacher)
    tops, tails = [], []
    for start in range(0, len(ids), chunk_tokens):
        at = slice(start, start + chunk_tokens)
        log_ref = cast.logits(one.aim.keep, one.hidden[one.aim.keep][at]).log_softmax(-1)  # (m, V)
        log_keep[at] = log_ref.gather(-1, ids[at]).squeeze(-1)
        if top_k:
            top, tail = top_k_target(told.top_ids[at].to(device), told.top_log_probs[at].to(device), log_ref, float(alpha[0]))
            tops.append(top)
            tails.append(tail)
    if top_k:
        return Known(one.tokens, told.top_ids.to(device), torch.cat(tops), torch.cat(tails)), log_teacher, log_keep
    log_q = alpha * log_teacher + (1 - alpha) * log_keep  # less log Z, which has no part in the gradient
    return Known(one.tokens, ids, log_q.unsqueeze(-1), None), log_teacher, log_keep


@torch.no_grad()
def mean_rewards(backbone: Backbone, rollout: Rollout, role: str, micro_batch_size: int) -> list[float]:
    """Of each response, the mean over its tokens of log π_role/π_0 (nats a token): the reward that the role's training left in it."""
    means = torch.empty(len(rollout.domains), device=rollout.ids.device)
    for part in micro_batches(rollout, micro_batch_size):
        ids = part.response_ids().unsqueeze(-1)  # (n, 1)
        log_probs = []
        for who in (role, REFERENCE):
            hidden = part.predicting(backbone.hidden(who, part.ids))  # (n, H)
            log_probs.append(backbone.logits(hidden, who).log_softmax(-1).gather(-1, ids).squeeze(-1))  # (n,)
        ratios = torch.split(log_probs[0] - log_probs[1], rollout.response_mask[part.rows].sum(1).tolist())
        means[part.rows] = torch.stack([ratio.mean() for ratio in ratios])
    return [float(mean) for mean in means]


def _where(tokens: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Which of `rows` are among `tokens` (ascending both), and where there."""
    places = torch.searchsorted(tokens, rows).clamp(max=max(0, len(tokens) - 1))
    here = (tokens[places] == rows).nonzero().squeeze(1) if len(tokens) else rows[:0]
    return here, places[here]


def _probed_tokens(rollout: Rollout) -> Tensor:
    """(S,) at most PROBED_TOKENS of each response, evenly spread."""
    chosen = []
    begin = 0
    for length in rollout.response_mask.sum(1).tolist():
        count = min(length, PROBED_TOKENS)
        chosen += [begin + (2 * i + 1) * length // (2 * count) for i in range(count)]
        begin += length
    return torch.tensor(chosen, dtype=torch.long, device=rollout.ids.device)
