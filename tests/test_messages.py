"""Every message that refuses something names what was given and says what to do: read off the source, so that none is left out."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gopd_merge
from gopd_merge.config import MergeConfig
from gopd_merge.eval_config import EvalConfig
from gopd_merge.experts.schema import REMEDIES, UNSUPPORTED

PACKAGE = Path(gopd_merge.__file__).parent
ERRORS = ("InputError", "GopdError", "TeacherError", "EngineError", "VerificationError", "Interrupted")
REFUSED_INPUT = ("InputError", "ValueError")  # these must name what was given
CONFIGS = ("config.py", "options.py", "probe_config.py", "sweep_config.py", "eval_config.py")  # their ValueErrors become InputErrors
OPTIONS = {*MergeConfig.model_fields, *EvalConfig.model_fields}
PASSED_ON = {(file, name) for file in CONFIGS for name in ("message", "problem")}  # texts that are checked where they are made


def constants(tree: ast.AST) -> dict[str, ast.expr]:
    """What a name stands for, where it is given a text."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.JoinedStr | ast.IfExp):
            found |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
    return found


def templates(node: ast.expr, names: dict[str, ast.expr]) -> list[str]:
    """The texts that an expression can be, with {expressions} in them; two for a choice."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.IfExp):
        return templates(node.body, names) + templates(node.orelse, names)
    if isinstance(node, ast.Name) and node.id in names:
        return templates(names[node.id], {name: value for name, value in names.items() if name != node.id})
    if not isinstance(node, ast.JoinedStr):
        return ["{" + ast.unparse(node) + "}"]
    texts = [""]
    for part in node.values:
        value = part.value if isinstance(part, ast.FormattedValue) else part
        # A name in a text keeps its braces, unless what it stands for holds the remedy.
        tails = (
            templates(value, names) if isinstance(part, ast.Constant) or (isinstance(value, ast.Name) and value.id == "remedy") else None
        )
        texts = [text + tail for text in texts for tail in tails or ["{" + ast.unparse(value) + "}"]]
    return texts


def messages(source: str, file: str) -> Iterator[tuple[str, str]]:
    """(class, template) of every error that the source raises with a text of its own."""
    tree = ast.parse(source)
    names = constants(tree)
    classes = (*ERRORS, "ValueError") if file in CONFIGS else ERRORS
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and getattr(node.exc.func, "id", "") in classes:
            argument = node.exc.args[0]
            if isinstance(argument, ast.Starred) or (file, ast.unparse(argument)) in PASSED_ON:
                continue
            for text in templates(argument, names):
                yield node.exc.func.id, text


def findings(source: str, shared: dict[str, ast.expr]) -> Iterator[tuple[str, str]]:
    """(problem, remedy) of every pair of which the first is a sentence: what a Refused is made of."""
    tree = ast.parse(source)
    names = shared | constants(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load) and len(node.elts) == 2:
            first, second = node.elts
            if isinstance(first, ast.JoinedStr | ast.Constant) and " " in templates(first, names)[0]:
                for remedy in templates(second, names):
                    yield templates(first, names)[0], remedy


def ill_formed(text: str) -> str | None:
    if "\n" in text:
        return "more than one line"
    if not text.strip() or text != text.strip() or text.endswith((".", ";", ":")):
        return "an end that is none"
    return None


def fault(kind: str, text: str) -> str | None:
    """What is wrong with an error's message."""
    if problem := ill_formed(text):
        return problem
    if kind == "Interrupted":  # nothing was wrong
        return None
    if not text.partition("; ")[2]:
        return "no remedy"
    if kind in REFUSED_INPUT and "{" not in text and "--" not in text and text.partition(":")[0] not in OPTIONS:
        return "its input is not named"
    return None


def finding_fault(problem: str, remedy: str) -> str | None:
    """What is wrong with a finding. Its input is named before it, by Refused."""
    if remedy in ("{remedy}", "{_}") and "{problem}" in problem:
        return None  # passed on
    return ill_formed(problem) or ("no remedy" if not remedy else ill_formed(remedy))


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def shared_constants() -> dict[str, ast.expr]:
    return {name: value for path in sources() for name, value in constants(ast.parse(path.read_text())).items() if name.isupper()}


def test_every_error_names_its_input_and_a_remedy():
    found = [
        (file, *message)
        for path in sources()
        for file in [path.relative_to(PACKAGE).as_posix()]
        for message in messages(path.read_text(), file)
    ]
    faults = [f"{file}: {fault(kind, text)}: {text}" for file, kind, text in found if fault(kind, text)]
    assert faults == []
    assert sum(kind in REFUSED_INPUT for _, kind, _ in found) > 35  # they were found at all


def contradictions(source: str) -> list[str]:
    """The texts of all rules about options that mean nothing together."""
    tree = ast.parse(source)
    names = {name: value for name, value in constants(tree).items() if name != "who"}
    rules = [node.value for node in ast.walk(tree) if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple)]
    return [text for rule in rules for text in templates(rule.elts[1], names)]


def test_every_contradiction_of_options_names_them_and_a_way_out():
    found = contradictions((PACKAGE / "consistency.py").read_text())
    faults = [f"{fault('', text) or 'no option'}: {text}" for text in found if fault("", text) or not ("--" in text or "{who}" in text)]
    assert faults == []
    assert len(found) > 20
    assert fault("", contradictions('def f():\n    yield bad, "--a and --b both move α"')[0]) == "no remedy"  # it would be noticed


def test_every_finding_has_a_remedy():
    shared = shared_constants()
    found = [(path.name, *pair) for path in sorted((PACKAGE / "experts").glob("*.py")) for pair in findings(path.read_text(), shared)]
    faults = [f"{file}: {finding_fault(*pair)}: {pair}" for file, *pair in found if finding_fault(*pair)]
    assert faults == []
    assert len(found) > 20
    assert any(remedy == "put the config and the tensors of one training together" for _, _, remedy in found)  # names are resolved


@pytest.mark.parametrize("text", [*REMEDIES.values(), *UNSUPPORTED.values()])
def test_every_remedy_for_a_setting_is_a_phrase(text):
    assert ill_formed(text) is None


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ('raise InputError(f"{path}: no such folder; name another")', None),
        ('raise InputError(f"{path}: no such folder")', "no remedy"),
        ('raise InputError(f"{path}: no such folder; ")', "an end that is none"),
        ('raise InputError("no such folder; name another")', "its input is not named"),
        ('raise InputError("experts: none given; name one")', None),
        ('raise InputError(f"{path}: no such folder; name another.")', "an end that is none"),
        ('raise InputError(f"{path}: no such folder;\\n name another")', "more than one line"),
        ('text = "bad"\nraise InputError(text) from None', "no remedy"),
        ('remedy = "a" if x else "b; c"\nraise InputError(f"{path}: bad; {remedy}")', None),
        ("raise InputError(text)", "no remedy"),
        ('raise GopdError("the machine is too small")', "no remedy"),
        ('raise VerificationError(f"{path}: bad")', "no remedy"),
        ('raise Interrupted("stopped", 2)', None),
    ],
)
def test_the_check_would_notice_a_message_that_lacks_something(statement, expected):
    (first, *_) = [fault(*message) for message in messages(statement, "any.py")]
    assert first == expected


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ('yield f"{name} is bad", "save it again"', None),
        ('yield f"{name} is bad", ""', "no remedy"),
        ('return [(f"{name} is bad", "save it again.")]', "an end that is none"),
        ('AGAIN = ""\nfindings.append((f"{name} is bad", AGAIN))', "no remedy"),
        ('found = [(f"{CONFIG}: {problem}", remedy) for problem, remedy in others]', None),
    ],
)
def test_the_check_would_notice_a_finding_that_lacks_something(statement, expected):
    source = f"def check():\n    {statement}" if "\n" not in statement and "=" not in statement else statement
    (pair,) = findings(source, {})
    assert finding_fault(*pair) == expected
