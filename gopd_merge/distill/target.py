"""The target of every response token, from the hidden states of its expert and of the reference.

Where the roles share one frozen head the target is one vector of H numbers a token: the mixed hidden state. Where a role has a
head of its own, hidden states are kept per role and the logits are mixed after projecting each by its own head.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gopd_merge.distill.backbone import REFERENCE, Backbone, expert
from gopd_merge.distill.objective import mixing_weights
from gopd_merge.distill.rollout import Rollout

PROBED_TOKENS = 8  # of each response, spread evenly: enough for the step's mean reward, little to project


@dataclass(frozen=True)
class Term:
    """One role's part in the target, for the tokens that have it: `weight` · logits of `role`."""

    role: str
    rows: Tensor  # (n,) token indices, ascending
    weight: Tensor  # (n,)
    hidden: Tensor  # (n, H)


@dataclass(frozen=True)
class Target:
    """What the student is brought to. Row n speaks of the n-th response token of the rollout.

    Exactly one of `mixed` (shared head) and `terms` (own heads) is there.
    """

    mixed: Tensor | None  # (N, H) float32
    terms: tuple[Term, ...]
    probed: Tensor  # (S,) indices of the tokens whose reward is measured
    teacher_log_prob: Tensor  # (S,) log π_T of the sampled token; NaN where the teacher was not needed
    reference_log_prob: Tensor  # (S,) log π_0 of it; NaN where the reference was not needed

    def logits(self, backbone: Backbone, rows: slice) -> Tensor:
        """(n, V) unnormalised logits of q for a slice of the tokens, float32."""
        if self.mixed is not None:
            return backbone.logits(self.mixed[rows])
        total: Tensor | None = None
        for term in self.terms:
            inside = (term.rows >= rows.start) & (term.rows < rows.stop)
            logits = backbone.logits(term.hidden[inside], term.role) * term.weight[inside].unsqueeze(-1)
            if total is None:
                total = logits.new_zeros(rows.stop - rows.start, logits.shape[-1])
            total.index_add_(0, term.rows[inside] - rows.start, logits)
        assert total is not None  # there are terms: the weights of a domain sum to 1
        return total


@torch.no_grad()
def score(backbone: Backbone, rollout: Rollout, alphas: Mapping[str, float], micro_batch_size: int) -> Target:
    """Score every response by its own domain's expert and by the reference, both in one mixed batch.

    Args:
        backbone: with all experts on it.
        rollout: B prompts and responses.
        alphas: λ by domain. Raises KeyError for a domain without one.
        micro_batch_size: responses scored at once; each is run once per role that its target needs.
    """
    ids = rollout.response_ids()  # (N,)
    terms: list[Term] = []
    start_token = 0
    for start in range(0, len(rollout.domains), micro_batch_size):
        part = rollout.rows(start, start + micro_batch_size)
        terms.extend(_score_part(backbone, part, alphas, start_token))
        start_token += part.num_tokens
    mixed = None
    if backbone.head_is_shared:
        mixed = torch.zeros(len(ids), terms[0].hidden.shape[-1], device=ids.device)
        for term in terms:
            mixed.index_add_(0, term.rows, term.hidden.float() * term.weight.unsqueeze(-1))
    probed = _probed_tokens(rollout)
    teacher, reference = _probe(backbone, terms, ids, probed)
    return Target(mixed, () if mixed is not None else tuple(terms), probed, teacher, reference)


def _score_part(backbone: Backbone, part: Rollout, alphas: Mapping[str, float], start_token: int) -> list[Term]:
    """The terms of one micro-batch: its rows are repeated once for each role that they need."""
    lengths = part.response_mask.sum(1)  # (b,)
    token_row = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)  # (n,)
    terms = []
    rows_of: dict[str, list[int]] = {}
    weight_of = torch.zeros(2, len(lengths), device=lengths.device)  # teacher, reference
    for row, domain in enumerate(part.domains):
        for kind, weight in mixing_weights(alphas[domain]).items():
            rows_of.setdefault(expert(domain) if kind == "teacher" else REFERENCE, []).append(row)
            weight_of[int(kind == "reference"), row] = weight
    roles = [role for role, rows in rows_of.items() for _ in rows]
    index = torch.tensor([row for rows in rows_of.values() for row in rows], device=lengths.device)
    hidden = backbone.hidden(roles, part.ids[index], part.attention_mask[index])  # (rows of all roles, P + T, H)
    begin = 0
    for role, rows in rows_of.items():
        own = hidden[begin : begin + len(rows)]
        begin += len(rows)
        at = torch.tensor(rows, device=lengths.device)
        mask = part.response_mask[at]  # (b', T)
        tokens = torch.isin(token_row, at).nonzero().squeeze(1)  # (n',) in the order in which `own` is compacted
        terms.append(
            Term(
                role=role,
                rows=tokens + start_token,
                weight=weight_of[int(role == REFERENCE)][token_row[tokens]],
                hidden=own[:, part.prompt_width - 1 : -1][mask],
            )
        )
    return terms


@torch.no_grad()
def mean_rewards(backbone: Backbone, rollout: Rollout, role: str, micro_batch_size: int) -> list[float]:
    """Of each response, the mean over its tokens of log π_role/π_0 (nats a token): the reward that the role's training left in it."""
    means = []
    for start in range(0, len(rollout.domains), micro_batch_size):
        part = rollout.rows(start, start + micro_batch_size)
        ids = part.response_ids().unsqueeze(-1)  # (n, 1)
        log_probs = []
        for who in (role, REFERENCE):
            hidden = part.predicting(backbone.hidden(who, part.ids, part.attention_mask))  # (n, H)
            log_probs.append(backbone.logits(hidden, who).log_softmax(-1).gather(-1, ids).squeeze(-1))  # (n,)
        ratios = torch.split(log_probs[0] - log_probs[1], part.response_mask.sum(1).tolist())
        means += [float(ratio.mean()) for ratio in ratios]
    return means


def _probed_tokens(rollout: Rollout) -> Tensor:
    """(S,) at most PROBED_TOKENS of each response, evenly spread."""
    chosen = []
    begin = 0
    for length in rollout.response_mask.sum(1).tolist():
        count = min(length, PROBED_TOKENS)
        chosen += [begin + (2 * i + 1) * length // (2 * count) for i in range(count)]
        begin += length
    return torch.tensor(chosen, device=rollout.ids.device)


def _probe(backbone: Backbone, terms: list[Term], ids: Tensor, probed: Tensor) -> tuple[Tensor, Tensor]:
    """log π_T and log π_0 of the probed tokens, (S,) each."""
    found = torch.full((2, len(ids)), float("nan"), device=ids.device)
    for term in terms:
        inside = torch.isin(term.rows, probed)
        tokens = term.rows[inside]
        log_probs = backbone.logits(term.hidden[inside], term.role).log_softmax(-1)
        found[int(term.role == REFERENCE), tokens] = log_probs.gather(-1, ids[tokens].unsqueeze(-1)).squeeze(-1)
    return found[0, probed], found[1, probed]
