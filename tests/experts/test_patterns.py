"""Patterns for module names: ordinary ones are taken, and none keeps anybody waiting."""

import signal
import threading
import time

import pytest

from gopd_merge.distill.backbone import Backbone
from gopd_merge.errors import InputError, Refused
from gopd_merge.experts import patterns
from gopd_merge.experts.base import resolve_base
from gopd_merge.experts.intake import read_expert
from gopd_merge.experts.patterns import check_patterns, selector, values_by_pattern
from gopd_merge.experts.schema import LoraSettings

UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:qkv_proj|q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\."
    r"(?:(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)))"
)
HOSTILE = {
    "alternatives": r"(?:(?:\w+|\.)*!)",
    "stars": ".*" * 30 + "!",
    "memory": "(?:(?:a?){60000}){60000}!",  # 2 GB a second
    "compilation": "(?i)" + "[\x00-\U0010ffff]" * 800,  # each costs milliseconds
}
FIELDS = {
    "target_modules": lambda pattern: pattern,
    "exclude_modules": lambda pattern: pattern,
    "layers_pattern": lambda pattern: [pattern],
    "rank_pattern": lambda pattern: {pattern: 8},
    "alpha_pattern": lambda pattern: {pattern: 8},
}


def lora(**changes):
    plain = {"peft_type": "LORA", "base_model_name_or_path": "x", "r": 8, "lora_alpha": 8.0, "target_modules": ["q_proj"]}
    return LoraSettings.model_validate(plain | changes)


def names(layers):
    parts = (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    )
    return [f"model.layers.{layer}.{part}" for layer in range(layers) for part in parts]


# PEFT puts something before the pattern of other fields, and there (?i) is an error.
@pytest.mark.parametrize(
    ("field", "kind"), [(f, k) for f in FIELDS for k in HOSTILE if k != "compilation" or f in ("target_modules", "exclude_modules")]
)
def test_a_pattern_that_takes_for_ever_is_refused_in_time_with_its_field(math_copy, edit_config, field, kind):
    edit_config(math_copy, **{field: FIELDS[field](HOSTILE[kind])})
    start = time.process_time()
    with pytest.raises(Refused) as caught:
        read_expert("math", str(math_copy))
    assert time.process_time() - start < 2
    ((problem, remedy),) = caught.value.findings
    assert problem.startswith(f"adapter_config.json: {field} has the pattern '{HOSTILE[kind][:4]}")
    assert problem.endswith("which takes too long to match")
    assert remedy == "list the names of the modules instead"


def test_a_pattern_that_takes_for_ever_on_other_modules_of_the_base_is_refused(math_copy, edit_config, load_model):
    """PEFT matches against norms and embeddings too, which no adapter names."""
    edit_config(math_copy, exclude_modules=r"(?=.*norm)(?:\w+|\.)*!")
    expert = read_expert("math", str(math_copy))
    start = time.process_time()
    with pytest.raises(InputError, match=r"math\.lora: adapter_config\.json: exclude_modules has the pattern .* takes too long"):
        resolve_base([expert], None)
    assert time.process_time() - start < 2
    edit_config(math_copy, exclude_modules=r"(?=.*act_fn)(?:[\w.]+)*!")  # it has no tensor, so only the model knows it
    expert = read_expert("math", str(math_copy))
    resolve_base([expert], None)
    with pytest.raises(InputError, match=r"exclude_modules has the pattern .* takes too long"):
        Backbone(*load_model(), [expert])
    edit_config(math_copy, exclude_modules=r".*norm")  # the control
    expert = read_expert("math", str(math_copy))
    resolve_base([expert], None)
    Backbone(*load_model(), [expert])


@pytest.mark.parametrize("layers", [4, 126])
@pytest.mark.parametrize("pattern", [UNSLOTH, r".*\.(q|k|v|o|gate|up|down)_proj", r"^(?!.*vision).*(?:self_attn|mlp).*_proj$"])
def test_ordinary_big_patterns_are_taken(pattern, layers):
    assert check_patterns(lora(target_modules=pattern), names(layers)) == []
    assert all(map(selector(pattern), names(layers)))


def test_a_pattern_for_each_module_of_a_large_base_is_taken():
    """What a merge by arithmetic writes. A bound on pairs of pattern and name would refuse it."""
    modules = names(80)
    ranks = {name: index + 1 for index, name in enumerate(modules)}
    settings = lora(target_modules=modules, rank_pattern=ranks, alpha_pattern={name: float(rank) for name, rank in ranks.items()})
    assert check_patterns(settings, modules) == []
    assert [values_by_pattern(ranks, 0)(name) for name in modules[:9]] == list(range(1, 10))


def test_many_patterns_that_are_quick_alone_are_bounded_together():
    settings = lora(rank_pattern={f"(?:.*){{6}}nothing{i}": 4 for i in range(2000)})
    start = time.process_time()
    ((problem, _),) = check_patterns(settings, names(50))
    assert time.process_time() - start < 2
    assert "takes too long" in problem


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("pattern", ["((", "a{99999999999}", "a**", "(?<=a*)b", "[z-a]"])
def test_what_is_no_regular_expression_is_refused_with_its_field(math_copy, edit_config, field, pattern):
    edit_config(math_copy, **{field: FIELDS[field](pattern)})
    with pytest.raises(Refused, match=f"{field} has the pattern .* no regular expression"):
        read_expert("math", str(math_copy))


@pytest.mark.parametrize("field", FIELDS)
def test_a_pattern_nested_beyond_measure_is_refused_with_its_field(math_copy, edit_config, field):
    edit_config(math_copy, **{field: FIELDS[field]("(" * 1500 + ")" * 1500)})
    with pytest.raises(
        Refused, match=f"{field} has the pattern .* (is no regular expression|takes too long to match)"
    ):  # on a slow machine
        read_expert("math", str(math_copy))


@pytest.mark.parametrize("field", FIELDS)
def test_a_pattern_of_endless_length_is_refused_by_its_length(math_copy, edit_config, field):
    edit_config(math_copy, **{field: FIELDS[field]("|".join(["q_proj"] * 600))})
    with pytest.raises(Refused, match="at most 4096 characters"):
        read_expert("math", str(math_copy))


def test_timers_and_handlers_of_others_are_as_before(monkeypatch):
    """Also when a match is ended. The control: in the block they are others."""
    seen = []
    previous = signal.signal(signal.SIGPROF, lambda *_: None)
    try:
        ours = signal.getsignal(signal.SIGPROF)
        signal.setitimer(signal.ITIMER_PROF, 500, 7)
        tick = patterns._Watch._tick

        def spy(watch, *arguments):
            seen.append((signal.getsignal(signal.SIGPROF), signal.getitimer(signal.ITIMER_PROF)[1]))
            tick(watch, *arguments)

        monkeypatch.setattr(patterns._Watch, "_tick", spy)
        assert check_patterns(lora(target_modules=HOSTILE["stars"]), names(1)) != []
        left, interval = signal.getitimer(signal.ITIMER_PROF)
        assert signal.getsignal(signal.SIGPROF) is ours
        assert left == pytest.approx(500, abs=10)
        assert interval == pytest.approx(7)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
    assert seen
    assert all(handler is not ours and interval == pytest.approx(patterns.TICK) for handler, interval in seen)


def test_outside_the_main_thread_patterns_are_checked_without_a_timer():
    found = []
    thread = threading.Thread(target=lambda: found.extend([check_patterns(lora(target_modules=p), names(2)) for p in (UNSLOTH, "((")]))
    thread.start()
    thread.join()
    assert found[0] == []
    assert "no regular expression" in found[1][0][0]
