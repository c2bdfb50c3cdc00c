"""What the card shows to its readers runs, as it stands there, against the Hub."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_snippets_of_the_card_run_against_the_hub(publish, hub, tmp_path):
    """As a reader would, one after the other; what vLLM is shown runs where it is installed (tests/vllm)."""
    assert publish("merged.lora", "you/merged").code == 0
    card = hub.files("you/merged")["README.md"].decode()
    snippets = [block.partition("```")[0] for block in card.split("```python\n")[1:]]
    peft, transformers, vllm = snippets
    for text in snippets:
        compile(text, "card", "exec")
    assert "LoRARequest" in vllm
    check = "assert answer.shape[1] > inputs['input_ids'].shape[1]\nassert any('lora_A' in name for name, _ in model.named_parameters())\n"
    program = peft + check + "del model\n" + transformers + check + "print('both')"
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "reader"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("both\n")
