"""`gopd-merge init`: a merge.yaml to begin with."""

import os
import shlex
from pathlib import Path

from gopd_merge.config import make_config
from gopd_merge.errors import InputError


def init(*experts: str, output: Path = Path("merge.yaml")) -> None:
    """Write a commented merge.yaml for these adapters.

    Parameters
    ----------
    experts
        adapter folders or Hub ids: PATH or DOMAIN=PATH, each
    output
        file to write; one that exists is refused
    """
    config = make_config({"experts": list(experts)})
    from gopd_merge.config_file import commented_yaml
    from gopd_merge.experts.intake import read_experts
    from gopd_merge.prompts.sources import own_prompts

    found = read_experts(config.experts)
    missing = [expert.domain for expert in found if not own_prompts(expert.path).is_file()]
    given = {"experts": config.experts, "prompts": {domain: f"{domain}.jsonl" for domain in missing}}
    text = commented_yaml(output.name, {name: value for name, value in given.items() if value})
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{output}: exists; choose another --output, or remove it") from None
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror}); choose another --output") from None
    print(f"{output} written")
    if files := [f"{domain}.jsonl" for domain in missing if not os.path.isfile(f"{domain}.jsonl")]:
        form = '{"prompt": "…"}'
        print(f"write the prompts first: {', '.join(files)}, one {form} a line; or put `prompts: synth` there, and the experts write them")
    print(f"next: gopd-merge --config {shlex.quote(str(output))}")
