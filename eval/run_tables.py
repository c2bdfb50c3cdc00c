"""Tables of how runs go: with many experts, in several processes, on other rollouts, and what becomes of them when they are killed."""

import json
from pathlib import Path

RESULTS = Path("eval/results")


def many_experts_table() -> list[str]:
    """Step time and memory against the number of experts."""
    if not (RESULTS / "many_experts.json").is_file():
        return []
    document = json.loads((RESULTS / "many_experts.json").read_text())
    asked = {"pool": "all from one pool of questions", "own": "each expert its own questions"}[document["questions"]]
    lines = [
        "\n## Many experts\n",
        f"One step of {document['batch_size']} prompts, {asked}: medians over {document['steps']} steps, then over "
        f"{document['repetitions']} processes each, in seconds; `processor` is the processor's time of the step. "
        f"{document['environment']['device']}. Made by `{document['command']}`.\n",
        "| experts | rotation | rollout | score | update | step | against the fewest | processor | response tokens | peak memory (MB) |",
        "|--:|---|" + "--:|" * 8,
    ]
    for row in document["rows"]:
        fewest = next(r for r in document["rows"] if r["rotation"] == row["rotation"])
        seconds = row["seconds"]
        phases = " | ".join(f"{seconds[phase]:.3f}" for phase in ("rollout", "score", "update", "step"))
        lines.append(
            f"| {row['experts']} | {row['rotation'] or 'default'} | {phases} | {seconds['step'] / fewest['seconds']['step']:.2f} | "
            f"{seconds['processor']:.3f} | {row['response_tokens_per_step']:,.0f} | {row['peak_memory_bytes'] / 1e6:,.0f} |"
        )
    return lines


def rollout_table() -> list[str]:
    """Rollouts against one plain call of generate()."""
    document = json.loads((RESULTS / "rollout.json").read_text())
    lines = [
        "\n## Rollouts\n",
        f"Responses of at most {document['rows'][0]['limit']} tokens, against one plain call of Transformers' generate() on the same "
        "prompts. A row is the pass of one response's new token; less than one is needed for a token, as a response's first comes with "
        "its prompt. "
        "`times as fast` is the median over batches, with the least and the most, of the time a response token. "
        f"{document['environment']['device']}. Made by `{document['command']}`.\n",
        "| model | rows that have ended are dropped | mean length | rows for a token | ms for a token | times as fast |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in document["rows"]:
        for one in row["methods"]:
            each = one["times_plain_of_each_batch"]
            faster = f"{one['times_plain']:.2f} ({min(each):.2f}–{max(each):.2f})" if one["method"] != "plain" else "–"
            lines.append(
                f"| {row['case']}, {row['batch_size']} prompts | {one['drops']} | {one['mean_length']:.1f} | {one['rows_per_token']:.2f} | "
                f"{one['milliseconds_per_token']:.2f} | {faster} |"
            )
    return lines


def processes_table() -> list[str]:
    """One, two and four processes on one machine."""
    document = json.loads((RESULTS / "processes.json").read_text())
    lines = [
        "## Measured\n",
        f"The same merge in one, two and four processes with a thread each, on a machine of {document['cores']} cores: median over the "
        "steps after the first. Exchanges are the time of the first process in sums and gathers, most of which is waiting for the others. "
        f"{document['environment']['device'].partition(',')[0]}, torch {document['environment']['torch']}. "
        f"Made by `{document['command']}`.\n",
        "| model | processes | step (s) | speed-up | of it rollout (s) | score (s) | update (s) | exchanges (s) | tokens/s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in document["rows"]:
        (alone,) = (r["step_seconds"] for r in document["rows"] if r["model"] == row["model"] and r["processes"] == 1)
        phases = " | ".join(f"{row['phase_seconds'][phase]:.2f}" for phase in ("rollout", "score", "update"))
        lines.append(
            f"| {row['model']} | {row['processes']} | {row['step_seconds']:.2f} | {alone / row['step_seconds']:.2f} | {phases} "
            f"| {row['exchange_seconds']:.2f} | {row['tokens'] / row['step_seconds']:,.0f} |"
        )
    return lines


def soak_table() -> list[str]:
    """What `make soak` counted."""
    document = json.loads((RESULTS / "soak.json").read_text())
    rows = []
    for name, precision in (("kills_none", "float32"), ("kills_nf4", "NF4")):
        if found := document.get(name):
            stages = ", ".join(f"{count} in {stage}" for stage, count in found["by_stage"].items())
            rows.append(
                f"{found['kills']} SIGKILLs, {precision} | {stages}; {found['same_bytes']} of {found['runs']} runs with the same bytes"
            )
    if found := document.get("kills_of_the_command"):
        rows.append(f"{sum(found.values())} SIGKILLs of the command with an interpreter of its own | as many runs with the same bytes")
    if found := document.get("failing_writes"):
        rows.append(f"{found['writes']} writes, each failing once | {found['went_on_to_the_same_bytes']} runs went on to the same bytes")
    if found := document.get("runs"):
        kept = ", ".join(f"{found['after_10'][name]} and {found['after_all'][name]} {name}" for name in ("files", "processes", "threads"))
        rows.append(
            f"{found['runs']} runs in one process, {found['stopped_and_taken_up']} of them stopped and taken up | {kept} after 10 and all"
        )
    if found := document.get("memory"):
        slope = f"{found['bytes_per_step']:,.0f} ± {found['standard_error']:,.0f} bytes a step"
        rows.append(f"{found['steps']:,} steps | resident memory grows by {slope}, {found['share_grown']:.2%} in all")
    about = f"{document['environment']['device']}, torch {document['environment']['torch']}. Made by `{document['command']}`."
    return ["## Measured\n", about + "\n", "| what was done | what came of it |\n|---|---|", *(f"| {row} |" for row in rows)]
