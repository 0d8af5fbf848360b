#!/usr/bin/env python3
"""Times a W4A8 checkpoint in qqq and a GGUF file in llama.cpp, in turns, and prints a table with ratios.

    scripts/bench_llama_cpp.py QQQ_BINARY W4A8_DIR MODEL.gguf [--prompt 512] [--new 128] [--depth 1] [--rounds 5] [--threads 2]

Both get random tokens, one sequence: a prompt of 512, and, apart from it as in llama-bench, 128 new tokens one by one after a
prompt of --depth. The first round only warms up. Figures are medians over rounds, because a shared machine's speed changes
within minutes (pip install llama-cpp-python)."""

import argparse
import json
import os
import random
import statistics
import subprocess
import time

import llama_cpp as llama

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("qqq")
parser.add_argument("w4a8")
parser.add_argument("gguf")
parser.add_argument("--prompt", type=int, default=512)
parser.add_argument("--new", type=int, default=128)
parser.add_argument("--depth", type=int, default=1)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, default=os.cpu_count())
args = parser.parse_args()


# Kept for as long as llama.cpp may call it.
SILENT = llama.llama_log_callback(lambda *_: None)


class Peer:
    """llama.cpp through its C interface, so that Python's share of a token's time is negligible."""

    def __init__(self):
        llama.llama_log_set(SILENT, None)
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(args.gguf.encode(), llama.llama_model_default_params())
        assert self.model, f"{args.gguf}: llama.cpp cannot load it"
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        options = llama.llama_context_default_params()
        options.n_ctx = max(args.prompt, args.depth + args.new) + 8
        options.n_batch = max(args.prompt, args.depth, 8)
        options.n_threads = options.n_threads_batch = args.threads
        self.context = llama.llama_init_from_model(self.model, options)

    def decode(self, count):
        tokens = (llama.llama_token * count)(*(random.randrange(self.vocab) for _ in range(count)))
        status = llama.llama_decode(self.context, llama.llama_batch_get_one(tokens, count))
        assert status == 0, f"llama_decode returned {status}"
        llama.llama_synchronize(self.context)

    def timed(self, before, steps, tokens):
        """Tokens a second of `steps` calls of `tokens` tokens each, after a prompt of `before`."""
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        if before:
            self.decode(before)
        start = time.perf_counter()
        for _ in range(steps):
            self.decode(tokens)
        return steps * tokens / (time.perf_counter() - start)

    def round(self):
        return self.timed(0, 1, args.prompt), self.timed(args.depth, args.new, 1)


def ours():
    def measure(what, prompt, new):
        command = [args.qqq, "bench", "model", args.w4a8, "--json", "--quiet", "--repeat", "1"]
        command += ["--prompt-tokens", str(prompt), "--new-tokens", str(new), "--threads", str(args.threads)]
        result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return result[f"{what}_tokens_per_second"]["median"]

    return measure("prefill", args.prompt, 2), measure("decode", args.depth, args.new)


peer = Peer()
rows = [(ours(), peer.round()) for _ in range(args.rounds + 1)][1:]
print(f"{'tokens/s':<14}{'qqq':>8}{'llama.cpp':>12}{'ratio':>8}   (medians of {args.rounds}; lowest to highest ratio)")
for i, what in enumerate([f"prefill {args.prompt}", f"decode {args.new}"]):
    a, b = ([row[side][i] for row in rows] for side in (0, 1))
    ratios = [x / y for x, y in zip(a, b)]
    middle = [statistics.median(values) for values in (a, b, ratios)]
    print(f"{what:<14}{middle[0]:8.0f}{middle[1]:12.0f}{middle[2]:7.2f}x   ({min(ratios):.2f}x to {max(ratios):.2f}x)")
