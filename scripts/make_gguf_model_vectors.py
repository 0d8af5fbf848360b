#!/usr/bin/env python3
"""Makes crates/qqq-model/tests/data/gguf/*.gguf and logits.safetensors there: small random models of the families that
llama.cpp has under names of their own, as its converter writes them, and their logits by transformers in float32
(pip install torch transformers safetensors numpy gguf). Names of tensors and keys are those of the package `gguf`."""

import json
import math
from pathlib import Path

import gguf
import numpy as np
import torch
from make_transformers_vectors import GEMMA3, GRANITE, MANY_TOKENS, MINISTRAL3, PHI3, SMOLLM3, TOKENS, fnv1a, weight
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM

OUT = Path(__file__).parent.parent / "crates/qqq-model/tests/data/gguf"
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
LONG = {
    "type": "longrope",
    "short_factor": [1.0, 1.25, 2.0],
    "long_factor": [1.0, 4.0, 9.0],
}
# Name: architecture of llama.cpp, whether q and k are interleaved, what is added to norms, config.json.
MODELS = {
    "smollm3": ("smollm3", True, 0, SMOLLM3 | SMALL | {"attention_bias": True}),
    "granite": ("granite", True, 0, GRANITE | SMALL | {"tie_word_embeddings": True}),
    "phi3": (
        "phi3", False, 0,
        PHI3 | SMALL | {
            "partial_rotary_factor": 0.75, "rope_scaling": LONG, "original_max_position_embeddings": 64, "sliding_window": 9,
        },
    ),
    "gemma3": (
        "gemma3", False, 1,
        {k: v for k, v in GEMMA3.items() if k not in ("sliding_window_pattern", "rope_local_base_freq")} | SMALL | {
            "num_hidden_layers": 6, "head_dim": 12, "query_pre_attn_scalar": 12,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "ministral3": ("mistral3", True, 0, MINISTRAL3 | SMALL | {"head_dim": 12}),
}  # fmt: skip


def interleaved(w, heads):
    """Row `half * width / 2 + i` of a head becomes row `2 i + half`."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def write(name, arch, is_interleaved, norm_shift, config, state):
    c = config
    head_dim = c.get("head_dim", c["hidden_size"] // c["num_attention_heads"])
    rope = c.get("rope_scaling") or c.get("rope_parameters") or {}
    w = gguf.GGUFWriter(OUT / f"{name}.gguf", arch)
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_block_count(c["num_hidden_layers"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_rope_freq_base(rope.get("rope_theta", c.get("rope_theta", 10000.0)))
    if "head_dim" in c:
        w.add_key_length(head_dim)
        w.add_value_length(head_dim)
    kind = rope.get("rope_type")
    if kind in ("linear", "yarn"):
        w.add_rope_scaling_type(gguf.RopeScalingType(kind))
        w.add_rope_scaling_factor(rope["factor"])
    if arch == "granite":
        w.add_attention_scale(c["attention_multiplier"])
        w.add_embedding_scale(c["embedding_multiplier"])
        w.add_residual_scale(c["residual_multiplier"])
        w.add_logit_scale(c["logits_scaling"])
    elif arch == "phi3":
        original = c["original_max_position_embeddings"]
        w.add_rope_dimension_count(int(head_dim * c["partial_rotary_factor"]))
        w.add_rope_scaling_orig_ctx_len(original)
        w.add_sliding_window(c["sliding_window"])
        w.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(c["max_position_embeddings"] / original) / math.log(original)))
        for which in ("short", "long"):
            w.add_tensor(f"rope_factors_{which}.weight", np.array(rope[f"{which}_factor"], dtype=np.float32))
    elif arch == "gemma3":
        w.add_sliding_window(c["sliding_window"])
    elif arch == "mistral3":
        w.add_rope_dimension_count(head_dim)
        w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        w.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        w.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
        w.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        w.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
    model_arch = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch)
    names = gguf.get_tensor_name_map(model_arch, c["num_hidden_layers"])
    for key, tensor in state.items():
        x = tensor.numpy()
        if is_interleaved and (".q_proj." in key or ".k_proj." in key):
            x = interleaved(x, c["num_attention_heads" if ".q_proj." in key else "num_key_value_heads"])
        if key.endswith("norm.weight"):
            x = x + np.float32(norm_shift)
        dtype = np.float16 if x.ndim == 2 else np.float32
        w.add_tensor(names.get_name(key, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(x.astype(dtype)))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    vectors = {}
    for name, (arch, is_interleaved, norm_shift, config) in MODELS.items():
        parsed = AutoConfig.for_model(**json.loads(json.dumps(config)))
        model = AutoModelForCausalLM.from_config(parsed, attn_implementation="eager", dtype=torch.float32).eval()
        state = {}
        with torch.no_grad():
            for key, parameter in model.state_dict().items():
                if key == "lm_head.weight" and config["tie_word_embeddings"]:
                    continue
                # Matrices are float16 in the file.
                values = weight(key, list(parameter.shape))
                parameter.copy_(values.half().float() if values.ndim == 2 else values)
                state[key] = parameter.clone()
            # A second text leaves the original context.
            for text, count in [(name, TOKENS), (f"{name}_beyond", MANY_TOKENS)][: 2 if name == "phi3" else 1]:
                ids = (np.arange(count, dtype=np.int64) * 37 + fnv1a(name) % 1000) ** 2 % config["vocab_size"]
                logits = model(torch.from_numpy(ids)[None]).logits[0].numpy()
                vectors[f"{text}.tokens"] = ids.astype(np.int32)
                vectors[f"{text}.logits"] = np.ascontiguousarray(logits)
        write(name, arch, is_interleaved, norm_shift, config, state)
        print(name, np.abs(logits).max(), (OUT / f"{name}.gguf").stat().st_size)
    save_file(vectors, OUT / "logits.safetensors")
    (OUT / "logits.safetensors").chmod(0o644)


main()
