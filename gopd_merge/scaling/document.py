"""What was found out about α, as the JSON document `scale.json` that `gopd-merge report` and the pictures read. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from gopd_merge.report.document import ScalePoint
from gopd_merge.report.scale import KIND, SCHEMA


def scale_document(
    made_by: Literal["probe", "sweep"],
    points: Sequence[ScalePoint],
    chosen: Mapping[str, float],
    why: Mapping[str, str],
    described: Mapping[str, Any],
) -> dict[str, Any]:
    """All of it. `described` holds what the run knows of itself: command, inputs, base, environment, seconds."""
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "made_by": made_by,
        "points": [point.model_dump(mode="json") for point in points],
        "chosen": dict(chosen),
        "why": dict(why),
        **described,
    }
