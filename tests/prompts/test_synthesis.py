"""What an expert wrote is sifted by its form, its likeness to what it wrote before, and by whose domain it is of."""

from dataclasses import replace

from gopd_merge.prompts.synthesis import (
    BROKEN,
    COPY,
    CUT,
    FAINTLY,
    OTHERS,
    SCRIPT,
    SHORT,
    Candidate,
    Mark,
    own,
    readable,
    remedy,
)

FINE = Candidate("How many apples does Ana have?", 9, True, True)


def known(text):
    return "in sums" if "secret" in text else None


def why(*changed):
    """Of candidates that differ from a fine one, which comes first."""
    return readable([FINE, *(replace(FINE, text=f"Candidate number {i}", **change) for i, change in enumerate(changed))], known)[1:]


def test_each_fault_of_form_has_its_reason_and_the_control_has_none():
    assert why({"ended": False}, {"is_text": False}, {"tokens": 2}, {}) == [CUT, BROKEN, SHORT, None]


def test_mathematics_and_code_stay_and_another_script_goes():
    texts = [
        *("What is 3x² + 5 ≥ 7?", "2 + 2 = ?", "def f(xs): return [x for x in xs if x > 3]", "∫ x dx", "Сколько яблок у Анны?"),
        *("a\x1b[2Jb c d", "Why is \ufffd there?", "Tell me the secret, please.", "How many apples does Ana have?"),
    ]
    found = readable([FINE, *(replace(FINE, text=text) for text in texts)], known)
    assert found == [None, None, None, None, None, SCRIPT, BROKEN, BROKEN, "in sums", COPY]
    russian = readable([replace(FINE, text="Сколько яблок у Анны?"), replace(FINE, text="Где живёт Борис?"), FINE], known)
    assert russian == [None, None, SCRIPT]  # what is usual is what most are written in


def test_a_prompt_is_the_experts_own_where_no_other_departs_further_from_the_base():
    marks = [Mark(0.0, {"math": 0.02, "code": 0.001}), Mark(0.0, {"math": 0.018, "code": 0.002}), Mark(0.1, {"math": 0.001, "code": 0.02})]
    assert own(marks, "math") == [None, None, OTHERS]
    assert own(marks, "code") == [OTHERS, OTHERS, None]


def test_what_the_expert_answers_nearly_as_the_base_does_is_not_of_its_domain():
    marks = [Mark(0.0, {"math": kl, "code": 0.0}) for kl in (0.02, 0.03, 0.025, 0.001)]
    assert own(marks, "math") == [None, None, None, FAINTLY]


def test_an_expert_alone_keeps_the_half_on_which_it_departs_further():
    marks = [Mark(0.0, {"math": kl}) for kl in (0.01, 0.02, 0.03, 0.04, 0.05)]
    assert own(marks, "math") == [FAINTLY, FAINTLY, None, None, None]


def test_the_advice_is_about_what_took_most():
    assert "--synth-tokens" in remedy({CUT: 5, COPY: 2})
    assert "name prompts" in remedy({OTHERS: 5, CUT: 2})
