"""The texts of `gopd-merge prompts`. No torch."""

from collections.abc import Mapping
from typing import Any

from gopd_merge.report.terminal import columns


def catalogue_text(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """What --prompts catalogue:NAME can name."""
    blocks = []
    for name, entry in entries.items():
        rows = [["from", entry["source"]], ["licence", entry["licence"]], ["domain", entry["domain"]]]
        blocks.append(f"catalogue:{name}  {entry['about']}\n" + "\n".join(f"  {line}" for line in columns(rows).splitlines()))
    return "\n\n".join([*blocks, "use one: gopd-merge --experts math.lora code.lora --prompts math=catalogue:gsm8k code=catalogue:mbpp"])


def written_text(document: Mapping[str, Any]) -> str:
    """What is in which file, and the merge to give next."""
    rows = [[d["file"], f"{d['prompts']:,} prompts of {d['source']}"] for d in document["domains"].values()]
    sources = " ".join(f"{domain}={d['file']}" for domain, d in document["domains"].items())
    return f"{columns(rows)}\n\nmerge on them: --prompts {sources}"
