"""Train an expert with a reward of your own, by reinforcement learning: right answers, and the shorter the better.

    python docs/examples/custom_reward.py

Run it from the root of the repository. The reward is a function of a prompt, an answer to it and the columns of the data that it names; it
gives a number. It runs in a process of its own, with a limit of time, and what it raises counts as 0 and is reported. The same from the
command line: `gopd-merge train-expert --reward docs/examples/custom_reward.py:brief …`
"""

from pathlib import Path

LONGEST = 200  # characters at which a right answer is worth half


def brief(response: str, answer: str) -> float:
    """Between 0.5 and 1 for a right answer, more for a short one; 0 for a wrong one."""
    _, mark, final = response.rpartition("####")
    return 1 - 0.5 * min(1, len(response) / LONGEST) if mark and final.strip() == answer else 0.0


def main(output: Path = Path("brief.lora"), **options: object) -> None:
    # Imported here, because the reward's process loads this file too and needs nothing of it.
    from gopd_merge.report.training_progress import TrainingProgress
    from gopd_merge.train_config import TrainConfig
    from gopd_merge.training.run import train_expert

    data = Path("adapters/math.lora/prompts")
    config = TrainConfig(
        base="adapters/tiny-base", recipe="rlvr", reward=f"{__file__}:brief", output=output,
        data=(str(data / "train.jsonl"),), validation=str(data / "validation.jsonl"), test=str(data / "test.jsonl"),
        **{"steps": 30, "max_new_tokens": 64} | options,
    )  # fmt: skip
    with TrainingProgress() as listener:
        made = train_expert(config, listener)
    for score in made.document["scores"]:
        print(score)
    print(f"merge it with others: gopd-merge --experts {made.output} adapters/code.lora")


if __name__ == "__main__":
    main()
