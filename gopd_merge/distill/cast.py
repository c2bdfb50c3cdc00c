"""Who takes part: the loaded models, the roles on them, and what each domain's prompts are brought to.

A role is an adapter, or none, on one of the models. In the common case there is one model, on which everybody plays; strong to weak has
the experts and their reference on a second, larger one; a reference may be a third.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gopd_merge.config import BASE
from gopd_merge.distill.backbone import REFERENCE, STUDENT, Backbone, expert
from gopd_merge.distill.objective import Aim, Reward

if TYPE_CHECKING:
    from gopd_merge.distill.engines import Engine
    from gopd_merge.distill.remote import RemoteTeacher

REMOTE = "remote"  # no model here: the teacher answers over the network


@dataclass(frozen=True, order=True)
class Role:
    """An adapter of a model by its name there, or REFERENCE for the bare model."""

    adapter: str
    model: str = BASE


@dataclass(frozen=True)
class Cast:
    """All models by name, and each domain's aim. `vocabulary`: the tokens that every model has, where their heads differ in size."""

    models: Mapping[str, Backbone]
    aims: Mapping[str, Aim]
    remote: Mapping[str, "RemoteTeacher"] = field(default_factory=dict)  # by domain
    engine: "Engine | None" = None  # who samples the student's answers; None: the backbone itself

    @property
    def backbone(self) -> Backbone:
        """The student's."""
        return self.models[BASE]

    @property
    def vocabulary(self) -> int:
        """V, of which every model knows the probabilities: heads may be padded to different sizes."""
        return min(model.vocabulary for model in self.models.values())

    def teacher(self, domain: str) -> Role:
        """The domain's own teacher. Raises KeyError for a domain without one."""
        own: list[Role] = [reward.teacher for reward in self.aims[domain].rewards if reward.teacher.adapter == expert(domain)]
        return own[0]

    def hidden(self, rows_of: Mapping[Role, list[int]], ids: Tensor) -> dict[Role, Tensor]:
        """Last hidden states (rows, L, H) of every role for the rows (of `ids`) that it is asked for; one mixed batch a model.

        Every row begins at column 0.
        """
        found: dict[Role, Tensor] = {}
        for name, model in self.models.items():
            asked = {role: rows for role, rows in rows_of.items() if role.model == name}
            if not asked:
                continue
            roles = [role.adapter for role, rows in asked.items() for _ in rows]
            index = torch.tensor([row for rows in asked.values() for row in rows], device=ids.device)
            hidden = model.hidden(roles, ids[index])
            found |= dict(zip(asked, torch.split(hidden, [len(rows) for rows in asked.values()]), strict=True))
        return found

    def logits(self, role: Role, hidden: Tensor) -> Tensor:
        """(n, H) hidden states of a role to (n, V) logits, float32."""
        return self.models[role.model].logits(hidden, role.adapter)[:, : self.vocabulary]

    @contextmanager
    def float_heads(self) -> Iterator[None]:
        """Every model's `Backbone.float_head`."""
        with ExitStack() as stack:
            for model in self.models.values():
                stack.enter_context(model.float_head())
            yield

    def student_logits(self, hidden: Tensor) -> Tensor:
        """The same for the student, with gradient."""
        return self.logits(Role(STUDENT), hidden)

    def can_mix(self, aim: Aim) -> bool:
        """Whether the target's logits are one projection a model: linear heads that all roles there share.

        A bias would be counted once whatever the roles' parts add up to, so a model with one must have parts that add up to 1.
        """
        models = {role.model for role in aim.roles if role.model != REMOTE}
        whole = len(models) == 1
        return all(self.models[name].head_is_shared and (whole or not self.models[name].head_has_bias) for name in models)


def plain_cast(backbone: Backbone, domains: tuple[str, ...] | list[str]) -> Cast:
    """Everybody on one base, each domain with its own expert and the bare base as reference: the default."""
    reference = Role(REFERENCE)
    return Cast({BASE: backbone}, {d: Aim(reference, (Reward(Role(expert(d)), reference),)) for d in domains})
