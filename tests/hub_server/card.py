"""What the Hub's own check of a model card's header refuses, as https://huggingface.co/docs/hub/model-cards and its model card spec say."""

import re

import yaml

HEADER = re.compile(r"^(\s*---\r?\n)([\S\s]*?)(\r?\n---[ \t]*(\r?\n|$))")
LICENCES = {
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigcode-openrail-m", "afl-3.0",
    "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0",
    "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "ecl-2.0",
    "epl-1.0", "epl-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0",
    "isc", "lppl-1.3c", "ms-pl", "apple-ascl", "mpl-2.0", "odc-by", "odbl", "openrail++", "osl-3.0", "postgresql", "ofl-1.1",
    "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr", "deepfloyd-if-license", "llama2", "llama3", "llama3.1", "llama3.2",
    "llama3.3", "llama4", "gemma", "unknown", "other",
}  # fmt: skip
RELATIONS = ("adapter", "finetune", "merge", "quantized")
REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
DATASET = re.compile(r"([\w.-]+/)?[\w.-]+")


def faults_of(content: str) -> list[str]:
    """One line for each thing that does not hold; none for a card without a header."""
    found = HEADER.search(content)
    if not found:
        return []
    try:
        header = yaml.safe_load(found[2])
    except yaml.YAMLError as error:
        return [f"the header is not YAML: {error}"]
    if not isinstance(header, dict):
        return ["the header must be a mapping"]
    return [*_plain(header), *(fault for model in header.get("model-index") or [] for fault in _index(model))]


def _plain(header):
    if "license" in header and header["license"] not in LICENCES:
        yield f'"license" must be one of the Hub\'s list, got {header["license"]!r}'
    bases = header.get("base_model", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or not REPO.fullmatch(base):
            yield f'"base_model" must be a model id, got {base!r}'
    if "base_model_relation" in header and header["base_model_relation"] not in RELATIONS:
        yield '"base_model_relation" must be one of ' + ", ".join(RELATIONS)
    for name in ("library_name", "pipeline_tag", "license_name"):
        if name in header and not isinstance(header[name], str):
            yield f'"{name}" must be a string'
    tags = header.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        yield '"tags" must be a list of strings'


def _index(model):
    if not isinstance(model, dict) or not isinstance(model.get("name"), str) or not model["name"]:
        yield '"model-index[].name" must be a string'
        return
    for result in model.get("results") or ():
        if not isinstance(result.get("task", {}).get("type"), str):
            yield '"model-index[].results[].task.type" is required'
        data = result.get("dataset", {})
        if not isinstance(data.get("name"), str) or not DATASET.fullmatch(str(data.get("type"))):
            yield '"model-index[].results[].dataset" must have a name and a type that is a dataset id'
        for metric in result.get("metrics") or [{}]:
            if not isinstance(metric.get("type"), str) or metric.get("value") is None:
                yield '"model-index[].results[].metrics[]" must have a type and a value'
