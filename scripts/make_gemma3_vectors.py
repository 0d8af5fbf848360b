#!/usr/bin/env python3
"""Makes crates/qqq-model/tests/data/gemma3_270m.json: what transformers computes in float32 of the GGUF file that
scripts/fetch-gemma3.sh obtains, whose path is the argument (pip install torch transformers accelerate gguf). With a text file as the
second argument, prints the perplexity of its first windows too."""

import json
import math
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

DATA = Path(__file__).parent.parent / "crates/qqq-model/tests/data"
# Longer than a window of attention.
LENGTH = 640
EVERY = 1021


def perplexity(model, ids, windows, length):
    """Of windows that begin with BOS, as the whole of their other tokens."""
    total, count = 0.0, 0
    for i in range(windows):
        part = torch.tensor([[2, *ids[i * (length - 1) : (i + 1) * (length - 1)]]])
        logits = model(part).logits[0, :-1].double()
        losses = torch.nn.functional.cross_entropy(logits, part[0, 1:], reduction="none")
        total, count = total + losses.sum().item(), count + len(losses)
    return math.exp(total / count)


def main():
    torch.set_num_threads(2)
    path = Path(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    print(model.config)
    # What stands for blanks in the vocabulary, where a text has it, is no blank to llama.cpp.
    lines = (DATA / "corpus.txt").read_bytes().decode().split("\n")
    text = "\n".join(line for line in lines if "\u2581" not in line)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    tokens = (ids * 8)[: LENGTH - 1]
    tokens = [2, *tokens]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0]
        positions = [0, 100, 511, 512, LENGTH - 1]
        prompt = [2, *tokenizer("The capital of France is", add_special_tokens=False).input_ids]
        answer = list(prompt)
        for _ in range(12):
            answer.append(model(torch.tensor([answer])).logits[0, -1].argmax().item())
        print(repr(tokenizer.decode(answer)))
        if len(sys.argv) > 2:
            more = tokenizer(Path(sys.argv[2]).read_bytes().decode()[:40_000], add_special_tokens=False).input_ids
            print(more[:20], perplexity(model, more, 4, 1024))
    losses = torch.nn.functional.cross_entropy(logits[:-1].double(), torch.tensor(tokens[1:]), reduction="mean")
    vectors = {
        "ids": ids,
        "tokens": tokens,
        "positions": positions,
        "largest": [logits[p].abs().max().item() for p in positions],
        f"every_{EVERY}th": [[round(x, 5) for x in logits[p, ::EVERY].tolist()] for p in positions],
        "perplexity": math.exp(losses.item()),
        "prompt": prompt,
        "greedy": answer[len(prompt) :],
    }
    (DATA / "gemma3_270m.json").write_text(json.dumps(vectors) + "\n")


main()
