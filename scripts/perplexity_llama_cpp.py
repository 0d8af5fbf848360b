#!/usr/bin/env python3
"""Perplexity of a GGUF model in llama.cpp, as its own tool counts it: second halves of windows that begin with BOS. To be set
beside `qqq eval perplexity MODEL.gguf --text TEXT --scoring second-half --window 512 --limit 2`.

    pip install cyllama numpy
    scripts/perplexity_llama_cpp.py MODEL.gguf TEXT [--window 512] [--limit 2] [--threads 2] [--unpacked]

--unpacked: of the same weights as float32 (four bytes each, in the folder for temporary files). llama.cpp rounds activations to
int8 before products with 4-bit weights; with these it multiplies floats, as qqq does with the weights of a GGUF file."""

import argparse
import json
import math
import tempfile
from pathlib import Path

import numpy as np
from cyllama.llama import llama_cpp as llama

parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
parser.add_argument("gguf")
parser.add_argument("text", type=Path)
parser.add_argument("--window", type=int, default=512)
parser.add_argument("--limit", type=int, default=2)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--unpacked", action="store_true")
args = parser.parse_args()



class Model(llama.LlamaModel):
    @property
    def n_vocab(self):
        """What the package's own logits ask for, and it has not."""
        return self.get_vocab().n_vocab


llama.disable_logging()
with tempfile.TemporaryDirectory() as folder:
    path = args.gguf
    if args.unpacked:
        path = f"{folder}/unpacked.gguf"
        how = llama.LlamaModelQuantizeParams()
        # All of it float32.
        how.ftype, how.allow_requantize = 0, True
        llama.model_quantize(args.gguf, path, how)
    model = Model(path)
params = llama.LlamaContextParams()
params.n_ctx = params.n_batch = params.n_ubatch = args.window
params.n_threads = params.n_threads_batch = args.threads
context = llama.LlamaContext(model, params)
vocab = model.get_vocab()
# A token has fewer bytes than this, on average.
text = args.text.read_text(encoding="utf-8")[: 16 * args.window * args.limit]
tokens = vocab.tokenize(text, True, False)[: args.window * args.limit]
assert len(tokens) == args.window * args.limit, "the text is too short"

losses = []
for start in range(0, len(tokens), args.window):
    window = tokens[start : start + args.window]
    if vocab.get_add_bos():
        window[0] = vocab.token_bos()
    context.kv_cache_clear()
    batch = llama.LlamaBatch(n_tokens=args.window, embd=0, n_seq_max=1)
    batch.set_batch(window, 0, True)
    context.decode(batch)
    for i in range(args.window // 2, args.window - 1):
        logits = np.array(context.get_logits_ith(i), dtype=np.float64)
        losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[window[i + 1]])
found = {"perplexity": math.exp(np.mean(losses)), "tokens": len(losses), "ids": tokens[:8]}
print(json.dumps(found | {"ggml": llama.ggml_version(), "commit": llama.ggml_commit()}))
