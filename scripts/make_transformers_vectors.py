#!/usr/bin/env python3
"""Makes crates/qqq-model/tests/data/parity.{json,safetensors}: logits of small random models of every
family, by transformers in float32 (pip install torch transformers safetensors numpy gguf).

The weights follow a formula of tensor name and index, which the test repeats, so only configurations,
tensor shapes, token ids and logits are kept. With the path of SmolLM2-135M-Instruct.Q4_1.gguf as its
argument, makes smollm2.safetensors there too: some logits of that model."""

import json
import os
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

OUT = Path(__file__).parent.parent / "crates/qqq-model/tests/data"
TOKENS = 40
# Of models whose name says that the text leaves the original context.
MANY_TOKENS = 90
STORAGE = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
MISTRAL = LLAMA | {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_key_value_heads": 2, "head_dim": 16
}
QWEN2 = LLAMA | {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_key_value_heads": 2, "rope_theta": 1e6,
    "rms_norm_eps": 1e-6, "use_sliding_window": False, "sliding_window": 256, "max_window_layers": 2,
}  # fmt: skip
QWEN3 = QWEN2 | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32}
SMOLLM3 = LLAMA | {
    "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "num_key_value_heads": 2, "num_hidden_layers": 4,
    "rope_theta": 5e6, "pad_token_id": 0,
}  # fmt: skip
GRANITE = LLAMA | {
    "architectures": ["GraniteForCausalLM"], "model_type": "granite", "num_key_value_heads": 2,
    "attention_multiplier": 0.1, "embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22,
}  # fmt: skip
PHI3 = LLAMA | {
    "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "num_key_value_heads": 2, "pad_token_id": 0,
    "original_max_position_embeddings": 256,
}  # fmt: skip
GEMMA3 = LLAMA | {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "num_key_value_heads": 2, "head_dim": 32,
    "num_hidden_layers": 4, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 24, "sliding_window": 7,
    "sliding_window_pattern": 3, "rope_theta": 1e6, "rope_local_base_freq": 1e3, "pad_token_id": 0,
    "bos_token_id": 2, "eos_token_id": 1, "tie_word_embeddings": True,
}  # fmt: skip
del GEMMA3["hidden_act"]
MINISTRAL3 = LLAMA | {
    "architectures": ["Ministral3ForCausalLM"], "model_type": "ministral3", "num_key_value_heads": 2, "head_dim": 16,
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16,
        "max_position_embeddings": 256, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.5,
    },
}  # fmt: skip
# Models that see: text_config, and as little as possible of the rest.
SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 8, "patch_size": 4, "vision_use_head": False,
}  # fmt: skip
PIXTRAL = {
    "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "head_dim": 8, "image_size": 8, "patch_size": 4,
}  # fmt: skip
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 8, "patch_size": 4, "projection_dim": 16,
}  # fmt: skip


def text(config, *left_out):
    return {k: v for k, v in config.items() if k not in ("architectures", "tie_word_embeddings", *left_out)}


SEEING_GEMMA3 = {
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text(GEMMA3),
    "vision_config": SIGLIP, "mm_tokens_per_image": 4, "boi_token_index": 58, "eoi_token_index": 59,
    "image_token_index": 60, "initializer_range": 0.02, "torch_dtype": "bfloat16",
}  # fmt: skip
SEEING_MISTRAL = {
    "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3",
    "text_config": text(MISTRAL) | {"sliding_window": None}, "vision_config": PIXTRAL, "image_token_index": 10,
    "multimodal_projector_bias": False, "projector_hidden_act": "gelu", "spatial_merge_size": 2, "vision_feature_layer": -1,
}  # fmt: skip
LLAVA = {
    "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava",
    # All heads have keys of their own, as the class has it.
    "text_config": text(LLAMA, "model_type") | {"architectures": ["LlamaForCausalLM"], "num_key_value_heads": 4},
    "vision_config": CLIP, "image_token_index": 60, "projector_hidden_act": "gelu", "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default", "tie_word_embeddings": False,
}  # fmt: skip
# The names of transformers 4's files.
OLDER_NAMES = {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head.", "model.": ""}
SEED_OSS = LLAMA | {
    "architectures": ["SeedOssForCausalLM"], "model_type": "seed_oss", "num_key_value_heads": 2, "head_dim": 24,
    "attention_out_bias": False, "rope_theta": 1e7,
}  # fmt: skip
LONG_ROPE = {"type": "longrope", "short_factor": [1.0, 1.5, 2.5], "long_factor": [1.0, 1.5, 2.5]}
LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip

# Name: config.json as models of that kind publish it, storage of the weights, number of files.
MODELS = {
    "llama_mha": (LLAMA, "f32", 1),
    "llama_gqa": (LLAMA | {"num_key_value_heads": 2, "rope_theta": 500000.0}, "bf16", 2),
    "llama31_rope": (LLAMA | {"num_key_value_heads": 1, "rope_scaling": LLAMA3_ROPE}, "mixed", 3),
    "llama_linear_rope": (LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}}, "f16", 1),
    "llama_tied": (LLAMA | {"num_key_value_heads": 2, "tie_word_embeddings": True, "num_hidden_layers": 3}, "bf16", 1),
    "llama_biases": (LLAMA | {"attention_bias": True, "mlp_bias": True}, "mixed", 2),
    "llama_head_dim": (LLAMA | {"num_key_value_heads": 2, "head_dim": 24}, "f32", 2),
    "mistral": (MISTRAL | {"sliding_window": None, "rope_theta": 1e6}, "bf16", 1),
    "mistral_window": (MISTRAL | {"sliding_window": 7}, "f16", 2),
    "qwen2": (QWEN2, "bf16", 1),
    "qwen2_window": (QWEN2 | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}, "f32", 1),
    "qwen3": (QWEN3, "bf16", 2),
    "qwen2_some_windows": (
        QWEN2 | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2, "num_hidden_layers": 4},
        "f32", 1,
    ),
    "qwen3_layer_types": (
        QWEN3 | {
            "use_sliding_window": True, "sliding_window": 5, "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        "f32", 1,
    ),
    "smollm3": (SMOLLM3 | {"tie_word_embeddings": True}, "bf16", 1),
    "smollm3_windows": (
        SMOLLM3 | {
            "no_rope_layers": [0, 1, 1, 0], "use_sliding_window": True, "sliding_window": 6, "attention_bias": True,
            "mlp_bias": True,
        },
        "f32", 2,
    ),
    "granite": (GRANITE, "bf16", 1),
    "granite_tied_bias": (GRANITE | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}, "f16", 1),
    "phi3": (PHI3, "bf16", 1),
    "phi3_window": (PHI3 | {"sliding_window": 8, "num_key_value_heads": 4}, "f32", 2),
    "phi4_partial_rope": (PHI3 | {"partial_rotary_factor": 0.75, "tie_word_embeddings": True}, "f16", 1),
    "phi4_long_rope": (
        PHI3 | {
            "partial_rotary_factor": 0.375, "rope_scaling": LONG_ROPE, "original_max_position_embeddings": 32,
        },
        "f32", 1,
    ),
    # The short list counts up to the original context, and the factor of attention is that of the whole one.
    "phi3_two_lists": (
        PHI3 | {
            "rope_scaling": {
                "type": "longrope", "short_factor": [1.0, 1.1, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0],
                "long_factor": [1.0, 3.0, 6.0, 9.0, 12.0, 15.0, 18.0, 21.0],
            },
            "original_max_position_embeddings": 48,
        },
        "f32", 1,
    ),
    # Texts longer than the original context.
    "phi4_beyond_original": (
        PHI3 | {
            "partial_rotary_factor": 0.75,
            "rope_scaling": {
                "type": "longrope", "short_factor": [1.0, 1.1, 1.5, 2.0, 2.5, 3.0],
                "long_factor": [1.0, 3.0, 6.0, 9.0, 12.0, 15.0],
            },
            "original_max_position_embeddings": 48, "sliding_window": 60,
        },
        "f32", 1,
    ),
    "llama_dynamic_beyond": (
        LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 64}, "bf16", 1,
    ),
    "llama_dynamic_rope": (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 64}, "f32", 1),
    "ministral3": (MINISTRAL3, "bf16", 1),
    "gemma3": (GEMMA3, "bf16", 1),
    "gemma3_scaled_rope": (
        GEMMA3 | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "attention_bias": True}, "f32", 2,
    ),
    "gemma3_rope_parameters": (
        {k: v for k, v in GEMMA3.items() if k not in ("rope_theta", "rope_local_base_freq", "sliding_window_pattern")} | {
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            },
        },
        "f16", 1,
    ),
    "seed_oss": (SEED_OSS, "bf16", 1),
    "seed_oss_biases": (SEED_OSS | {"attention_out_bias": True, "mlp_bias": True, "attention_bias": True}, "f32", 1),
    "seed_oss_null_head_dim": (SEED_OSS | {"head_dim": None}, "f16", 1),
    "seeing_gemma3": (SEEING_GEMMA3, "bf16", 2),
    "seeing_mistral_older_names": (SEEING_MISTRAL, "f32", 1),
    "seeing_ministral3": (
        SEEING_MISTRAL | {"text_config": text(MINISTRAL3), "tie_word_embeddings": False}, "bf16", 1,
    ),
    "llava_older_names": (LLAVA, "f16", 1),
    "qwen3_tied_bias": (QWEN3 | {"tie_word_embeddings": True, "attention_bias": True}, "f16", 1),
}


def fnv1a(text):
    state = 0xCBF29CE484222325
    for byte in text.encode():
        state = ((state ^ byte) * 0x100000001B3) % 2**64
    return state


def uniform(name, count):
    """Multiples of 2^-23 in [-1, 1): splitmix64 of the name's hash and the index."""
    with np.errstate(over="ignore"):
        z = np.uint64(fnv1a(name)) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return ((z >> np.uint64(40)).astype(np.float32) - np.float32(2**23)) / np.float32(2**23)


def weight(name, shape):
    """Norm weights around 1, biases up to 1/2, matrices that grow a normalized input by half."""
    u = uniform(name, int(np.prod(shape)))
    if "norm" in name:
        values = np.float32(1) + u * np.float32(0.5)
    elif name.endswith("bias"):
        values = u * np.float32(0.5)
    elif "embed" in name:
        values = u
    else:
        values = u * np.sqrt(np.float32(6.75) / np.float32(shape[-1]))
    return torch.from_numpy(values.reshape(shape))


def stored_as(name, storage):
    return STORAGE[storage if storage != "mixed" else list(STORAGE)[fnv1a(name) % 3]]


def save(tensors, file):
    save_file(tensors, OUT / file)
    # The library makes files that only their owner can read.
    os.chmod(OUT / file, 0o644)


def random_models():
    tensors, manifest = {}, {}
    for name, (config, storage, files) in MODELS.items():
        parsed = AutoConfig.for_model(**json.loads(json.dumps(config)))
        kind = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
        model = kind.from_config(parsed, attn_implementation="eager", dtype=torch.float32).eval()
        tied = config.get("tie_word_embeddings", "gemma3" in name)
        if not tied and "vision_config" in config:
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        shapes = {}
        with torch.no_grad():
            for key, parameter in model.state_dict().items():
                if key == "lm_head.weight" and tied or parameter.dtype != torch.float32:
                    continue
                if name.endswith("older_names"):
                    new, old = next((pair for pair in OLDER_NAMES.items() if key.startswith(pair[0])))
                    key = old + key.removeprefix(new)
                shapes[key] = list(parameter.shape)
                parameter.copy_(weight(key, shapes[key]).to(stored_as(key, storage)))
            count = MANY_TOKENS if "beyond" in name else TOKENS
            ids = (np.arange(count, dtype=np.int64) * 37 + fnv1a(name) % 1000) ** 2 % config.get("text_config", config)["vocab_size"]
            logits = model(torch.from_numpy(ids)[None]).logits[0].numpy()
            exact = model.double()(torch.from_numpy(ids)[None]).logits[0].numpy()
        noise = np.abs(logits - exact).max() / np.abs(exact).max()
        print(f"{name:20} logits to {np.abs(logits).max():6.2f}, float32 against float64 {noise:.1e}")
        tensors[f"{name}.tokens"] = ids.astype(np.int32)
        tensors[f"{name}.logits"] = np.ascontiguousarray(logits)
        manifest[name] = {"config": config, "storage": storage, "files": files, "tensors": shapes}
    # The form in which transformers 5 writes the rotary embedding.
    new_form = manifest["llama31_rope"]["config"] | {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 10000.0}}
    del new_form["rope_scaling"]
    manifest["llama31_rope"]["config"] = new_form
    save(tensors, "parity.safetensors")
    (OUT / "parity.json").write_text(json.dumps(manifest, indent=1) + "\n")


def smollm2(path):
    """The model from the dequantized tensors, with llama.cpp's permutation of the rows of q and k undone."""
    reader = gguf.GGUFReader(path)

    def field(key):
        return reader.fields[f"llama.{key}"].contents()

    heads, kv_heads = field("attention.head_count"), field("attention.head_count_kv")
    tensors = {t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}
    config = LlamaConfig(
        vocab_size=tensors["token_embd.weight"].shape[0],
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=field("context_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        tie_word_embeddings="output.weight" not in tensors,
    )
    print(config)
    modules = {
        "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    state = {"model.embed_tokens.weight": tensors["token_embd.weight"], "model.norm.weight": tensors["output_norm.weight"]}
    state["lm_head.weight"] = tensors.get("output.weight", tensors["token_embd.weight"])
    for block in range(config.num_hidden_layers):
        for theirs, ours in modules.items():
            w = tensors[f"blk.{block}.{theirs}.weight"]
            if theirs in ("attn_q", "attn_k"):
                n = heads if theirs == "attn_q" else kv_heads
                w = w.reshape(n, w.shape[0] // n // 2, 2, w.shape[1]).transpose(1, 2).reshape(w.shape)
            state[f"model.layers.{block}.{ours}.weight"] = w
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).float().eval()
    model.load_state_dict(state)
    ids = np.array(
        [504, 3575, 282, 4649, 314, 7042, 30, 378, 3575, 282, 4456, 314, 9405, 28, 284, 260, 3575, 282, 6461, 314],
        dtype=np.int64,
    )
    positions = np.array([0, 9, len(ids) - 1], dtype=np.int32)
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    print("largest", np.abs(logits).max(), "next", logits[positions].argmax(1))
    save(
        {
            "tokens": ids.astype(np.int32),
            "positions": positions,
            "largest": np.abs(logits).max(axis=1)[positions],
            "every_16th": np.ascontiguousarray(logits[positions][:, ::16]),
        },
        "smollm2.safetensors",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    random_models()
    if len(sys.argv) > 1:
        smollm2(sys.argv[1])
