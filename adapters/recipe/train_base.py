"""Train `adapters/tiny-base` from scratch: a Llama of 0.9 M parameters that is half-good at two domains.

    python adapters/recipe/train_base.py --output adapters/tiny-base
    python adapters/recipe/train_base.py --output adapters/big-base --tokenizer adapters/tiny-base \
        --hidden-size 256 --intermediate-size 640 --steps 1100 --learning-rate 2e-3

Two cores need about half an hour, for the second, of 3.1 M parameters, three quarters of one. The text is generated on the fly
from the train split (`splits.py`), with the mistakes that `math_problems.py` and `code_problems.py` describe.
"""

import argparse
import itertools
import json
import math
import random
import time
from pathlib import Path

import torch
from splits import stream
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY, HEAD_SIZE = 512, 32
PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
BUCKET = 8  # batches that are drawn together and sorted by length, so that little is spent on padding


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE that never joins digits, signs or words: a word is one token, any other text still has a spelling."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[A-Za-z]+| ?\d| ?[^\sA-Za-z\d]|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, padding_side="left")
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def make_model(tokenizer: PreTrainedTokenizerFast, hidden_size: int, intermediate_size: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=4,
        num_attention_heads=hidden_size // HEAD_SIZE,
        num_key_value_heads=hidden_size // HEAD_SIZE,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def batches(tokenizer: PreTrainedTokenizerFast, batch_size: int, seed: int):
    """Token ids of half math, half code conversations, right-padded: (B, T) with -100 where there is padding."""
    rng = random.Random(seed)
    domains = [stream("math", "train", seed), stream("code", "train", seed)]
    while True:
        texts = []
        for index in range(BUCKET * batch_size):
            problem = next(domains[index % 2])
            texts.append(f"{USER}{problem['prompt']}{END}{ASSISTANT}{problem['sample'](rng)}{END}")
        rows = sorted(tokenizer(texts)["input_ids"], key=len)
        chunks = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        rng.shuffle(chunks)
        for chunk in chunks:
            yield torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in chunk], True, padding_value=-100)


def train(
    output: Path,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    hidden_size: int,
    intermediate_size: int,
    tokenizer_of: Path | None,
) -> None:
    torch.manual_seed(seed)
    texts = [
        f"{p['prompt']}\n{p['sample'](random.Random(seed))}"
        for d in ("math", "code")
        for p in itertools.islice(stream(d, "train", seed), 3000)
    ]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_of) if tokenizer_of else make_tokenizer(texts)
    model = make_model(tokenizer, hidden_size, intermediate_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    warmup = 50
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / warmup) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps))),
    )
    started = time.time()
    for step, labels in zip(range(1, steps + 1), batches(tokenizer, batch_size, seed), strict=False):  # (B, T)
        ids = labels.clamp(min=0)
        loss = model(input_ids=ids, labels=labels).loss  # causal and right-padded: no attention mask is needed
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps:
            print(f"step {step}/{steps}  loss {loss.item():.4f}  {time.time() - started:.0f} s", flush=True)
        if step % 400 == 0 or step == steps:
            model.save_pretrained(output)
            tokenizer.save_pretrained(output)
    model.to(torch.bfloat16).save_pretrained(output)
    made = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    made |= {"hidden_size": hidden_size, "intermediate_size": intermediate_size, "seconds": round(time.time() - started)}
    made |= {"tokenizer": str(tokenizer_of)} if tokenizer_of else {}
    (output / "training.json").write_text(json.dumps(made | {"loss": round(loss.item(), 4), "torch": torch.__version__}, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("adapters/tiny-base"))
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--intermediate-size", type=int, default=384)
    parser.add_argument("--tokenizer", type=Path, dest="tokenizer_of", help="a base whose tokenizer is taken (default: a new one)")
    train(**vars(parser.parse_args()))
