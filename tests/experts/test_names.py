"""Names out of files: they can be anything, and are shown to people."""

import pytest
from safetensors.torch import load_file, save_file

from gopd_merge.errors import InputError, Refused
from gopd_merge.experts.base import resolve_base
from gopd_merge.experts.intake import read_expert

WEIGHTS = "adapter_model.safetensors"


def change_tensors(folder, change):
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def test_a_name_cannot_steer_the_terminal(math_copy):
    change_tensors(math_copy, lambda t: {f"\x1b[31m{n}\x7f" if "layers.0.mlp.up_proj.lora_A" in n else n: v for n, v in t.items()})
    with pytest.raises(Refused) as caught:
        read_expert("math", str(math_copy))
    assert "\\x1b[31mbase_model" in str(caught.value)
    assert all(line.isprintable() for line in str(caught.value).splitlines())


@pytest.mark.parametrize("name", ["x" * 300, "a/" + "b" * 300, "a\0b", "a\ud800", "a\x1b[2Jb", "a\nb"])
def test_a_base_with_a_name_that_nothing_can_have_is_refused(math_copy, edit_config, name):
    edit_config(math_copy, base_model_name_or_path=name)
    with pytest.raises(InputError, match="; ") as caught:
        resolve_base([read_expert("math", str(math_copy))], None)
    assert str(caught.value).isprintable()


def test_a_folder_with_a_name_that_none_can_have_is_refused():
    with pytest.raises(InputError, match="no such folder"):
        read_expert("math", "x" * 300 + "/")


@pytest.mark.parametrize("part", ["\t", "\x1b[2J", "\u202e", "x" * 600])
def test_a_module_with_a_name_that_cannot_be_shown_is_refused(math_copy, part):
    change_tensors(math_copy, lambda t: {n.replace("layers.3.mlp.up_proj", part): v for n, v in t.items()})
    with pytest.raises(Refused) as caught:
        read_expert("math", str(math_copy))
    assert len(caught.value.findings) == 2
    assert all(line.isprintable() and len(line) < 400 for line in str(caught.value).split("\n"))


def test_a_name_cannot_begin_a_line_of_its_own(math_copy):
    change_tensors(math_copy, lambda t: {n.replace("layers.3.mlp.up_proj.lora_A", "\ngopd-merge: all is well"): v for n, v in t.items()})
    with pytest.raises(Refused) as caught:
        read_expert("math", str(math_copy))
    assert "\\ngopd-merge: all is well" in str(caught.value)
    assert not any(line.startswith("gopd-merge") for line in str(caught.value).split("\n"))
