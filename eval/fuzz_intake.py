"""Coverage-guided fuzzing of everything that reads an adapter: any bytes must be taken, or refused in printable lines, soon.

    pip install -e ".[fuzz]"
    python eval/fuzz_intake.py --seconds 600

An input is a config, the head of a tensor file (its 8 bytes of length and the header) and edits of the values behind it, so that
both files can become any bytes while libFuzzer copies few. Writes eval/results/fuzz_intake.json; what breaks is kept in
eval/work/fuzz, and belongs into tests/experts/finds once it is mended: tests/experts/test_finds.py replays those without atheris.
"""

import argparse
import importlib.metadata
import json
import math
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LONGEST_SECONDS, MOST_MEMORY = 2.0, 500  # CPU time of one input, and MB above what the process takes without one
LENGTH_IS_RIGHT = 1  # a flag: the header's length is written anew, so that edits of the header leave a readable file
WORDS = """
r lora_alpha target_modules exclude_modules layers_to_transform layers_pattern rank_pattern alpha_pattern use_rslora use_dora lora_bias
bias init_lora_weights peft_type peft_version base_model_name_or_path revision modules_to_save
LORA data_offsets shape dtype F16 BF16 F32 F64 I8 __metadata__ base_model.model. .lora_A.weight .lora_B.weight .lora_magnitude_vector
.lora_B.bias .lora_embedding_A model.layers.1.mlp.up_proj lm_head embed_tokens null true false NaN 1e999 [] {} [0] -1 .* all-linear
""".split()  # noqa: SIM905 - the first two lines are settings
SETTINGS: tuple[Any, ...] = (
    None, True, False, 0, 1, 4, -1, 2**70, 0.5, 1e-320, 1e300, math.nan, "", "x" * 300, "a/" + "b" * 300, "someone/something", "\ud800",
    "\x1b[31m", "a\nb", "\0", "..", "/", ".", "adapters/tiny-base", ".*", ".*proj", "(", "(?:\\w+)*!", "all-linear", [], ["q_proj"],
    [[0, 1]], {}, {"q_proj": 4}, {".*": 4}, {"(": 4}, {"": 4}, "LORA", "gaussian", "0.99.0", [128, 4], [0, 0], [2**63, 2], [0, 1, 2, 3],
)  # fmt: skip


def pack(config: bytes, head: bytes, edits: bytes = b"", flags: int = LENGTH_IS_RIGHT) -> bytes:
    """An input from its parts."""
    return struct.pack("<BHH", flags, len(config), len(head)) + config + head + edits


def parts(data: bytes) -> tuple[bytes, bytes, bytes, int]:
    """What `pack` was given; of any bytes."""
    flags, config_size, head_size = struct.unpack("<BHH", data[:5].ljust(5, b"\0"))
    config, rest = data[5 : 5 + config_size], data[5 + config_size :]
    return config, rest[:head_size], rest[head_size:], flags


def unpack(data: bytes, values: bytes) -> tuple[bytes, bytes]:
    """The two files that an input stands for. `values` are those of the original; edits are (position, length, byte) to fill."""
    config, head, edits, flags = parts(data)
    if flags & LENGTH_IS_RIGHT and len(head) >= 8:
        head = struct.pack("<Q", len(head) - 8) + head[8:]
    changed = bytearray(values)
    for position, count, byte in struct.iter_unpack("<HHB", edits[: len(edits) // 5 * 5]):
        end = min(position + count, len(changed))
        changed[position:end] = bytes([byte]) * (end - min(position, end))
    return config, head + bytes(changed)


def mutate(data: bytes, seed: int, change_bytes: Callable[[bytes], bytes]) -> bytes:
    """Another input: one part with other bytes, or a setting or a tensor's entry replaced. Most others would be no JSON at all.

    Some are made from a seed, and some get one part of it back: what is broken in two places is refused for the first alone.
    """
    random = Random(seed)
    whole = random.choice(SEEDS)
    config, head, edits, flags = parts(whole if random.random() < 0.2 else data)
    kind = random.choice(("config", "head", "edits", "setting", "setting", "tensor", "tensor", "config of a seed", "tensors of a seed"))
    if kind == "config of a seed":
        config = parts(whole)[0]
    elif kind == "tensors of a seed":
        _, head, edits, flags = parts(whole)
    elif kind == "config":
        config = change_bytes(config)
    elif kind == "head":
        head = change_bytes(head)
    elif kind == "edits":
        edits = change_bytes(edits)
    elif kind == "setting":
        config = change_json(config, lambda content: content.update({random.choice(WORDS[:17]): random.choice(SETTINGS)}))
    else:
        flags |= LENGTH_IS_RIGHT
        head = head[:8] + change_json(head[8:], lambda content: change_tensor(content, random))
    return pack(config[:0xFFFF], head[:0xFFFF], edits, flags)


def change_json(text: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The text as it is where it is no object."""
    try:
        content = json.loads(text)
        change(content)
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError, IndexError):
        return text
    return json.dumps(content).encode()


def change_tensor(content: dict[str, Any], random: Random) -> None:
    """Another name, type or shape for one tensor of a header."""
    name = random.choice(list(content))
    entry = content.pop(name)
    kind = random.randrange(4)
    if kind == 0:
        name = name.replace(random.choice(name.split(".")), random.choice(WORDS))
    elif kind == 1:  # half the bytes a value, twice the values
        entry |= {"dtype": random.choice(("F16", "BF16")), "shape": [2 * entry["shape"][0], *entry["shape"][1:]]}
    elif kind == 2:
        entry["shape"] = random.choice((entry["shape"][::-1], [*entry["shape"], 1], [math.prod(entry["shape"])]))
    else:
        entry[random.choice(("dtype", "shape", "data_offsets"))] = random.choice(SETTINGS)
    content[name] = entry


def split_tensor_file(content: bytes) -> tuple[bytes, bytes]:
    """(length and header, values)."""
    size = 8 + int.from_bytes(content[:8], "little")
    return content[:size], content[size:]


def seeds() -> tuple[list[bytes], bytes]:
    """The embedded code expert, some edits of it that are adapters of another kind, and its values."""
    config = (ROOT / "adapters" / "code.lora" / CONFIG).read_bytes()
    head, values = split_tensor_file((ROOT / "adapters" / "code.lora" / WEIGHTS).read_bytes())
    parsed = json.loads(config)
    changes = (
        {"target_modules": r".*\.(q|v|o|up|down)_proj"},
        {"exclude_modules": "(a+)+b", "layers_pattern": ["layers"], "layers_to_transform": [0, 1, 2, 3]},
        {"rank_pattern": {"layers.1.*": 4}, "alpha_pattern": {"q_proj": 3}, "use_rslora": True},
        {"base_model_name_or_path": "someone/something", "revision": "main"},
        {"use_surprise": True, "peft_version": "0.99.0"},
    )
    configs = [config, *(json.dumps(parsed | change).encode() for change in changes)]
    edits = (b"", struct.pack("<HHB", 0, 65535, 0), struct.pack("<HHB", 16, 4, 127), struct.pack("<HHB", 16, 4, 255))
    return [*(pack(c, head) for c in configs), *(pack(config, head, e) for e in edits[1:]), pack(config, head, flags=0)], values


SEEDS, VALUES = seeds()


@contextmanager
def workplace() -> Iterator[Path]:
    """An empty adapter's folder beside the embedded base."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "adapters" / "fuzzed.lora"
        folder.mkdir(parents=True)
        (folder.parent / "tiny-base").symlink_to(ROOT / "adapters" / "tiny-base")
        yield folder


def run_one(folder: Path, config: bytes, weights: bytes) -> str | None:
    """The refusal, or None where the adapter is taken and inspected. AssertionError, or any other, is a find."""
    from gopd_merge.errors import InputError
    from gopd_merge.experts.base import resolve_base
    from gopd_merge.experts.intake import read_expert
    from gopd_merge.inspection import inspect
    from gopd_merge.report.inspection import inspection_text

    (folder / CONFIG).write_bytes(config)
    (folder / WEIGHTS).write_bytes(weights)
    start = time.process_time()
    try:
        expert = read_expert("fuzzed", str(folder), allow_noop=True)
        document = inspect([expert, expert])
        text = inspection_text(document) + "".join(expert.warnings)
        json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
        resolve_base([expert], None)
        refusal = None
    except InputError as error:
        text = refusal = str(error)
    used = time.process_time() - start
    assert used < LONGEST_SECONDS, f"took {used:.1f} s"
    assert all(line.isprintable() for line in text.split("\n")), f"not printable: {text!r}"
    assert refusal is None or "; " in refusal or " problems\n" in refusal, f"says not what to do: {text!r}"
    return refusal


def fuzz(corpus: Path, libfuzzer: list[str]) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(corpus)}
    with atheris.instrument_imports(include=["gopd_merge"], enable_loader_override=False):
        import gopd_merge.inspection
        import gopd_merge.report.inspection  # noqa: F401 - imported here to be instrumented
    counts = {"taken": 0, "refused": 0}
    with workplace() as folder:
        for data in SEEDS:  # what is imported late, and the baseline of memory
            run_one(folder, *unpack(data, VALUES))

        def target(data: bytes) -> None:
            counts["taken" if run_one(folder, *unpack(data, VALUES)) is None else "refused"] += 1
            if sum(counts.values()) % 1000 == 0:
                (corpus.parent / "counts.json").write_text(json.dumps(counts))

        baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        limits = [f"-rss_limit_mb={baseline + MOST_MEMORY}", "-timeout=60"]

        def mutator(data: bytes, max_size: int, seed: int) -> bytes:
            return mutate(data, seed, lambda part: atheris.Mutate(part, 8000))[:max_size]

        atheris.Setup([sys.argv[0], str(corpus), *limits, *libfuzzer], target, custom_mutator=mutator)
        atheris.Fuzz()


def main(seconds: int, output: Path, work: Path) -> None:
    """Run libFuzzer in a process of its own, again after each find, and write what came of it."""
    corpus = work / "corpus"
    shutil.rmtree(work, ignore_errors=True)
    corpus.mkdir(parents=True)
    kept = sorted((ROOT / "tests" / "experts" / "finds").glob("*.bin"))
    for number, data in enumerate([*SEEDS, *(path.read_bytes() for path in kept)]):
        (corpus / f"seed{number}").write_bytes(data)
    words = work / "words"
    words.write_text("".join(f'"{word}"\n' for word in WORDS))
    start, executions, taken, refused, log = time.monotonic(), 0, 0, 0, ""
    while (left := seconds - int(time.monotonic() - start)) > 5:
        options = [f"-max_total_time={left}", f"-dict={words}", f"-artifact_prefix={work}/find-", "-max_len=20000", "-print_final_stats=1"]
        command = [sys.executable, __file__, "--corpus", str(corpus.resolve()), "--", *options]
        done = subprocess.run(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, check=False)
        log = done.stdout.decode(errors="replace")
        executions += int((re.findall(r"number_of_executed_units:\s*(\d+)", log) or re.findall(r"#(\d+)", log) or ["0"])[-1])
        if (counts := work / "counts.json").exists():
            found = json.loads(counts.read_text())
            taken, refused = taken + found["taken"], refused + found["refused"]
        print(log[-4000:], flush=True)
        if done.returncode == 0:
            break
    # Not before: a process counts what its parent took as its own peak of memory.
    import torch

    from gopd_merge.artefacts import environment

    progress = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", log) or [("0", "0", "0")]
    finds = [path for path in work.glob("find-*") if "slow-unit" not in path.name]
    result = {
        "schema": 1,
        "command": f"python eval/fuzz_intake.py --seconds {seconds}",
        "executions": executions,
        "seconds": round(time.monotonic() - start),
        "taken": taken,
        "refused": refused,
        "coverage": dict(zip(("edges", "features", "corpus"), map(int, progress[-1]), strict=True)),
        "finds": len(finds),
        "finds_kept_as_tests": len(kept),
        "environment": environment(torch.device("cpu")) | {"atheris": importlib.metadata.version("atheris")},
    }
    output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--output", type=Path, default=ROOT / "eval" / "results" / "fuzz_intake.json")
    parser.add_argument("--work", type=Path, default=ROOT / "eval" / "work" / "fuzz")
    parser.add_argument("--corpus", type=Path, help="run libFuzzer itself on this folder; further arguments are its own")
    parser.add_argument("libfuzzer", nargs="*")
    given = vars(parser.parse_args())
    corpus, libfuzzer = given.pop("corpus"), given.pop("libfuzzer")
    if corpus:
        fuzz(corpus, libfuzzer)
    else:
        main(**given)
