#!/usr/bin/env python3
"""Writes crates/qqq-engine/tests/greedy_vectors.json: greedy tokens of transformers (float32) for small models whose keys or
values float16 cannot hold, or hardly, and for rotary embeddings that depend on the length of the text. The weights follow from tensor names, so that the test makes the same model.

    pip install torch transformers
    python scripts/make_greedy_vectors.py
"""
import json, pathlib
import torch, transformers

OUT = pathlib.Path(__file__).resolve().parent.parent / "crates/qqq-engine/tests/greedy_vectors.json"
HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, VOCAB, NEW = 64, 96, 2, 4, 2, 96, 24
PROMPTS = [[5], [11, 60, 2, 90, 33], [(7 * i + i * i) % VOCAB for i in range(150)]]
MASK = 2**64 - 1

# Name, architecture, {end of a tensor's name: factor (a power of two)}, {channel of the bias of every k: value}.
CASES = [
    ("ordinary", "qwen2", {}, {}),
    ("values beyond float16", "llama", {"v_proj.weight": 2.0**19, "o_proj.weight": 2.0**-19}, {}),
    ("values beyond float16 in one layer", "llama", {"layers.1.self_attn.v_proj.weight": 2.0**30, "layers.1.self_attn.o_proj.weight": 2.0**-30}, {}),
    ("values below float16", "llama", {"v_proj.weight": 2.0**-20, "o_proj.weight": 2.0**20}, {}),
    ("values among its subnormals", "llama", {"v_proj.weight": 2.0**-14, "o_proj.weight": 2.0**14}, {}),
    ("keys beyond float16", "llama", {"k_proj.weight": 2.0**20, "q_proj.weight": 2.0**-20}, {}),
    ("keys below float16", "llama", {"k_proj.weight": 2.0**-22, "q_proj.weight": 2.0**22}, {}),
    ("a bias of keys of 800", "qwen2", {}, {3: 800.0, 9: -800.0, 20: 800.0}),
    ("a bias of keys of 2000", "qwen2", {}, {3: 2000.0, 9: -2000.0, 20: 2000.0}),
    ("a bias of keys of 30000", "qwen2", {}, {3: 3e4, 9: -3e4, 20: 3e4}),
    ("a bias of keys beyond float16", "qwen2", {}, {3: 3e5, 9: -3e5, 20: 3e5}),
    ("small weights", "llama", {"_proj.weight": 2.0**-12}, {}),
    ("head norms of keys beyond float16", "qwen3", {"k_norm.weight": 2.0**18, "q_norm.weight": 2.0**-18}, {}),
    ("two lists of rope factors", "llama", {}, {}),
    ("dynamic rope", "llama", {}, {}),
]
# The answer to the longest prompt crosses the original context.
CONFIGS = {
    "two lists of rope factors": {"rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 160,
        "short_factor": [1.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0], "long_factor": [1.0, 2.0, 4.0, 6.0, 9.0, 12.0, 16.0, 20.0]}},
    "dynamic rope": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 8.0}, "max_position_embeddings": 160},
}  # fmt: skip


def numbers(name, count):
    """Uniform in [-1, 1), from splitmix64 seeded by FNV-1a of the name."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 & MASK
    out = []
    for i in range(1, count + 1):
        z = (seed + i * 0x9E3779B97F4A7C15) & MASK
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
        z ^= z >> 31
        out.append((z >> 40) / 2.0**23 - 1.0)
    return torch.tensor(out, dtype=torch.float32)


def model(kind, factors, bias, more):
    config, cls = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    }[kind]
    options = dict(vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS,
                   num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HIDDEN // HEADS,
                   max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=False)
    m = cls(config(**options | more)).float().eval()
    with torch.no_grad():
        for name, p in m.named_parameters():
            x = numbers(name, p.numel()).reshape(p.shape)
            if "norm" in name:
                x = 1 + x / 4
            elif name.endswith("bias"):
                x = x / 4
            elif "embed" not in name:
                x = x / 4
            for end, factor in factors.items():
                x = x * factor if name.endswith(end) else x
            p.copy_(x)
            if name.endswith("k_proj.bias"):
                for channel, value in bias.items():
                    p[channel] = value
    return m


def greedy(m, prompt, reach):
    """Tokens, and the least distance of the best logit to the next, relative to the spread of all. What follows up to `reach`
    tokens changes nothing but the rotary embedding, which goes by the length of the pass."""
    ids, margin = list(prompt), float("inf")
    for _ in range(NEW):
        logits = m(torch.tensor([ids + [0] * (reach - len(ids))])).logits[0, len(ids) - 1]
        best = logits.topk(2).values
        margin = min(margin, ((best[0] - best[1]) / logits.std()).item())
        ids.append(int(logits.argmax()))
    return ids[len(prompt):], margin


with torch.no_grad():
    cases = []
    for name, kind, factors, bias in CASES:
        more = CONFIGS.get(name, {})
        m = model(kind, factors, bias, more)
        tokens = []
        for prompt in PROMPTS:
            found, margin = greedy(m, prompt, len(prompt) + NEW if more else 0)
            print(f"{name:40s} margin {margin:.1e} {found[:8]}")
            assert margin > 2e-4, "too close to call in float32: change the case"
            tokens.append(found)
        if more:
            last = PROMPTS[-1]
            original = greedy(model(kind, factors, bias, more), last, 0)[0][:8]
            assert original != tokens[-1][:8], "within the original context nothing else would come"
        case = {"name": name, "architecture": kind, "factors": factors, "key_bias": {str(k): v for k, v in bias.items()}}
        cases.append(case | ({"config": more} if more else {}) | {"tokens": tokens})
head = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "prompts": PROMPTS}
lines = ",\n".join("  " + json.dumps(c) for c in cases)
OUT.write_text(json.dumps(head)[:-1] + ', "cases": [\n' + lines + "\n]}\n")
