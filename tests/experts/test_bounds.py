"""No adapter costs more than two seconds of processor time or 500 MB to refuse or to take, up to 2 GiB of tensors.

Measured in a process of its own, above what it takes after an ordinary adapter. Each further GiB of tensors costs time (about a
quarter of a second where it is refused, one second where it is taken and hashed) and no memory: values are streamed.
"""

import json
import os
import subprocess
import sys

import pytest

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
SECONDS, MEGABYTES = 2.0, 500
MEASURE = """
import json, sys, time
from pathlib import Path
from gopd_merge.errors import InputError
from gopd_merge.experts.base import resolve_base
from gopd_merge.experts.intake import read_expert

def memory(key):  # of this process alone: ru_maxrss knows that of the parent
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024

def read(folder):
    try:
        resolve_base([read_expert("x", folder)], None)
        return "taken"
    except InputError as error:
        return str(error)

assert read(sys.argv[1]) == "taken"
before, start = memory("VmRSS"), time.process_time()
text = read(sys.argv[2])
print(json.dumps({"seconds": time.process_time() - start, "megabytes": memory("VmHWM") - before, "text": text}))
"""


def measure(ordinary, folder):
    with (folder / WEIGHTS).open("rb") as file:  # into the kernel's memory: what finding room there costs is no matter of ours
        while file.read(1 << 20):
            pass
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, ordinary, folder],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout)


def write_tensors(folder, entries, size=None):
    """A tensor file of (name, dtype, shape), with all values zero and no place on the disk."""
    header, at = {}, 0
    for name, dtype, shape, count in entries:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + count]}
        at += count
    text = json.dumps(header, separators=(",", ":")).encode()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + (at if size is None else size))
    return len(text)


def pairs(count, size=4):
    """lora_A and lora_B of `count` modules, of rank 1."""
    for index in range(count):
        for side, shape in (("A", [1, size // 4]), ("B", [size // 4, 1])):
            yield f"base_model.model.model.layers.{index}.mlp.up_proj.lora_{side}.weight", "F32", shape, size


def many_modules(folder):
    write_tensors(folder, pairs(37_500))


def many_strangers(folder):
    write_tensors(folder, ((f"t{index}", "F32", [1], 4) for index in range(75_000)))


def too_many_strangers(folder):
    assert write_tensors(folder, ((f"t{index}", "F32", [1], 4) for index in range(240_000))) < 16 << 20


def header_of_one_name(folder):
    write_tensors(folder, [("base_model.model." + "x" * (15 << 20) + ".lora_A.weight", "F32", [1], 4)])


def header_of_dimensions(folder):
    write_tensors(folder, [("base_model.model.x.lora_A.weight", "F32", [1] * 8_000_000, 4)])


def huge_shapes(folder):
    write_tensors(folder, [("base_model.model.x.lora_A.weight", "F32", [1 << 40, 1 << 40], 4)])


def huge_offsets(folder):
    write_tensors(folder, [("base_model.model.x.lora_A.weight", "F32", [1 << 40], 1 << 42)], size=8)


def two_gigabytes(folder):
    write_tensors(folder, pairs(2, 1 << 29))


def config_text(text):
    return lambda folder: (folder / CONFIG).write_text(text, encoding="utf-8")


def setting(**changes):
    def write(folder):
        text = json.dumps(json.loads((folder / CONFIG).read_text()) | changes)
        assert len(text) <= 1 << 20
        (folder / CONFIG).write_text(text)

    return write


HOSTILE = {
    "many modules": (many_modules, "problems"),
    "many strangers": (many_strangers, "problems"),
    "too many strangers": (too_many_strangers, "names more than 75,000 tensors"),
    "a header of one name": (header_of_one_name, "has a name of 15,728,"),
    "a header of dimensions": (header_of_dimensions, "is no linear layer"),
    "huge shapes": (huge_shapes, "not a readable safetensors file"),
    "huge offsets": (huge_offsets, "not a readable safetensors file"),
    "two gigabytes of zeros": (two_gigabytes, "changes nothing"),
    "nested lists": (config_text("[" * 500_000 + "]" * 500_000), "not valid JSON"),
    "nested lists in a setting": (config_text('{"r": ' + "[" * 500_000 + "]" * 500_000 + "}"), "not valid JSON"),
    "a flat list": (config_text("[" + "0," * 520_000 + "0]"), "expected a JSON object"),
    "many unknown settings": (config_text(json.dumps({f"k{i}": 1 for i in range(80_000)})), "problems"),
    "an endless number": (config_text('{"r": ' + "9" * 1_000_000 + "}"), "not valid JSON"),
    "an endless fraction": (config_text('{"r": 0.' + "9" * 1_000_000 + "}"), "problems"),
    "a setting twice": (config_text('{"peft_type": "LORA", "peft_type": "LOHA"}'), "peft_type is 'LOHA'"),
    "half of a pair of surrogates": (setting(base_model_name_or_path="\ud800"), "base_model_name_or_path is"),
    "a long name of a base": (setting(base_model_name_or_path="x" * 1_000_000), "base_model_name_or_path is"),
    "a long name of a version": (setting(peft_version="0." + "9" * 1_000_000, use_surprise=1), "use_surprise is no field"),
    "many targets": (setting(target_modules=[f"m{i}" for i in range(80_000)]), "at most 20000 items"),
    "as many targets as may be": (setting(target_modules=[f"m{i}" for i in range(20_000)]), "is none of the target_modules"),
    "many patterns": (setting(rank_pattern={f"(.*.*.*.*m{i})": 4 for i in range(20_000)}), "takes too long"),
    "a hostile pattern": (setting(target_modules="(?:(?:a?){60000}){60000}!"), "takes too long"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_hostile_is_refused_soon_and_in_little_memory(adapters, code_copy, kind):
    write, expected = HOSTILE[kind]
    write(code_copy)
    found = measure(adapters / "math.lora", code_copy)
    assert expected in found["text"]
    assert len(found["text"]) < 10_000
    assert found["seconds"] < SECONDS
    assert found["megabytes"] < MEGABYTES


def test_the_measurement_sees_time_and_memory(adapters, code_copy, monkeypatch):
    """The control: a reader that holds the file, and works for longer."""
    hold = "def read_expert(domain, folder, kept=[]):\n    kept.append(b'x' * (600 << 20))\n    end = time.process_time() + 2.1\n"
    hold += "    while time.process_time() < end: pass\n    raise InputError('x')\n"
    monkeypatch.setattr(sys.modules[__name__], "MEASURE", MEASURE.replace("before, start", hold + "before, start", 1))
    found = measure(adapters / "math.lora", code_copy)
    assert found["seconds"] > SECONDS
    assert found["megabytes"] > MEGABYTES
