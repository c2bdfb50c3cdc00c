"""Imports follow the architecture, and the tests see the installed package."""

import ast
from pathlib import Path

import gopd_merge

PACKAGE = Path(gopd_merge.__file__).parent
ROOMS = ("experts", "prompts", "distill", "evaluate", "report", "hub")
LEVEL = {
    "errors": 0,
    "parallel": 2,
    "consistency": 1,
    "disk": 1,
    "machine": 1,
    "stopping": 1,
    "options": 2,
    "server": 1,
    "prompt_source": 1,
    "tracking": 2,
    "config": 3,
    "config_file": 3.5,
    "eval_config": 3,
    "probe_config": 3.5,
    "halving": 2,
    "sweep_config": 3.5,
    "train_config": 3,
    **dict.fromkeys(ROOMS, 4),
    "gathering": 4.5,
    "plan": 5,
    "settings": 6,
    "run_folder": 7,
    "artefacts": 6,
    "doctor": 6,
    "export": 6,
    "inspection": 6,
    "workload": 5.5,
    "forecast": 6,
    "casting": 7,
    "chat": 7,
    "distillation": 8,
    "training": 8,
    "writing": 8.5,
    "comparison": 9,
    "scaling": 10,
    "pipeline": 11,
    "calibration": 11,
    "sweep": 12,
    "asking": 12,
    "cli": 13,
    "__main__": 14,
    "__init__": 15,
}
BETWEEN_ROOMS = {
    ("distill", "experts"),
    ("evaluate", "distill.rollout"),
    ("evaluate", "prompts.files"),
    ("evaluate", "prompts.sources"),
    ("report", "evaluate.statistics"),
    ("hub", "experts"),
    ("hub", "report"),
}
WITHOUT_TORCH = (
    "disk",
    "run_folder",
    "settings",
    "stopping",
    "cli",
    "config",
    "config_file",
    "errors",
    "forecast",
    "gathering",
    "halving",
    "hub",
    "machine",
    "options",
    "parallel",
    "plan",
    "prompt_source",
    "prompts",
    "report",
    "server",
    "sweep_config",
    "tracking",
    "train_config",
    "workload",
)
LIGHT = (
    *("experts.intake", "experts.base", "experts.decoder", "experts.token_counts"),
    *("distill.counted", "distill.counted_pass", "distill.ledger", "distill.methods", "distill.sizes"),
    *("evaluate.suites", "evaluate.items", "evaluate.rows"),
    *("training.examples", "training.inputs", "training.isolated", "training.reading", "training.reward_worker", "training.rewards"),
)


def imports(path: Path):
    """(module, at import time?) of every import from our own package and of torch, type-checking blocks left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        names = (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else []
        )
        if names == ["gopd_merge"]:
            names = [f"gopd_merge.{alias.name}" for alias in node.names]
        for name in names:
            yield name, id(node) in top


def place(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def test_imports_point_down():
    seen = 0
    for path in PACKAGE.rglob("*.py"):
        source = place(path)
        if source.split(".")[0] == "metrics":
            continue  # an installed package has those of eval/metrics there, which users load and nothing here imports
        for name, _ in imports(path):
            if not name.startswith("gopd_merge.") or name == "gopd_merge.__version__":
                continue
            seen += 1
            target = name.removeprefix("gopd_merge.")
            source_room, target_room = source.split(".")[0], target.split(".")[0]
            if target_room not in LEVEL or source_room == target_room:
                continue
            if source_room in ROOMS and target_room in ROOMS:
                allowed = (source_room, target_room) in BETWEEN_ROOMS or (source_room, target) in BETWEEN_ROOMS
                assert allowed, f"{source} imports {target}"
            else:
                assert LEVEL[target_room] < LEVEL[source_room], f"{source} imports {target}"
    assert seen > 30


def test_what_must_answer_at_once_does_not_import_torch_when_it_is_imported():
    heavy = ("torch", "transformers", "peft")
    for path in PACKAGE.rglob("*.py"):
        if place(path).split(".")[0] in WITHOUT_TORCH or place(path) in LIGHT:
            for name, at_import in imports(path):
                assert not (at_import and name.split(".")[0] in heavy), f"{place(path)} imports {name}"


def test_statistics_are_imported_when_something_is_measured_not_before_a_merge():
    """`scipy.stats` takes half a second; `import scipy` alone fetches it when it is named."""
    for path in PACKAGE.rglob("*.py"):
        assert not any(name == "scipy.stats" and at_import for name, at_import in imports(path)), place(path)


def test_the_rules_would_notice_an_arrow_that_points_up():
    assert LEVEL["cli"] > LEVEL["distill"]
    assert ("distill", "evaluate") not in BETWEEN_ROOMS


def test_the_package_under_test_is_the_installed_one():
    """A checkout on the path would hide a file that the wheel lacks. `make test` installs the wheel."""
    assert "site-packages" in PACKAGE.parts
