"""Tiny random models, the qqq binary, and perplexity by transformers."""

import json
import math
import os
import random
import subprocess
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(2)

GEMMA3 = {"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 50, "tie_word_embeddings": True}
#: Family of the configuration and the model, and what the configuration has beside the sizes.
FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    # Projections that are fused on disk.
    "phi3": ("Phi3", {"pad_token_id": 0, "sliding_window": 100}),
    # Norms that no rotation passes, windows, two bases of the rotary embedding.
    "gemma3": ("Gemma3", GEMMA3),
    "granite": ("Granite", {"residual_multiplier": 0.5, "logits_scaling": 4.0, "attention_multiplier": 0.2}),
    "smollm3": ("SmolLM3", {"pad_token_id": 0, "no_rope_layers": [1, 0]}),
    "mistral": ("Mistral", {"sliding_window": 50}),
    "ministral3": ("Ministral3", {"head_dim": 32}),
    "seed_oss": ("SeedOss", {"head_dim": 32}),
    # A model that sees, of which qqq takes the text part.
    "seeing": ("Gemma3", GEMMA3),
}
WINDOW, WINDOWS = 256, 4


def write_text(path: Path, seed: int, words: int) -> None:
    """Sentences of made-up words, of which few are frequent."""
    rng = random.Random(seed)
    syllables = [a + b for a in "bdfklmnprst" for b in "aeiou"]
    lexicon = ["".join(rng.choice(syllables) for _ in range(rng.randint(1, 3))) for _ in range(300)]
    chosen = [lexicon[min(int(rng.expovariate(0.02)), 299)] for _ in range(words)]
    lines = [" ".join(chosen[i : i + 12]).capitalize() + "." for i in range(0, words, 12)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_tokenizer(directory: Path) -> None:
    """A token for each byte, and one that ends texts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def write_model(directory: Path, family: str) -> None:
    """Two blocks with random weights, saved in float32."""
    name, own = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")(
        vocab_size=272, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.08, **own,
    )  # fmt: skip
    kind = "ForCausalLM"
    if family == "seeing":
        sight = transformers.SiglipVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
            vision_use_head=False,
        )  # fmt: skip
        config = transformers.Gemma3Config(
            text_config=config, vision_config=sight, mm_tokens_per_image=4, boi_token_index=268, eoi_token_index=269,
            image_token_index=270,
        )  # fmt: skip
        kind = "ForConditionalGeneration"
    model = getattr(transformers, name + kind)(config).float().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "norm" in parameter_name:
                # Gemma adds 1 itself.
                parameter.copy_((name != "Gemma3") + 0.2 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    write_tokenizer(directory)


def qqq(*arguments: object) -> dict:
    """Runs the binary; its JSON result, or {"error": ..., "exit_code": ...}."""
    command = [os.environ["QQQ_BIN"], *map(str, arguments), "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.stdout, f"{command}: exit code {run.returncode}\n{run.stderr}"
    return json.loads(run.stdout) | ({"exit_code": run.returncode} if run.returncode else {})


def qqq_perplexity(directory: Path, text: Path) -> float:
    result = qqq("eval", "perplexity", directory, "--text", text, "--window", WINDOW, "--limit", WINDOWS)
    assert "perplexity" in result, result
    return result["perplexity"]


def load(directory: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@torch.no_grad()
def perplexity(model: torch.nn.Module, directory: Path, text: Path) -> float:
    """The mean over windows, as `qqq eval perplexity` takes it."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = tokenizer.encode(text.read_text(encoding="utf-8")).ids
    losses = []
    for start in range(0, WINDOWS * WINDOW, WINDOW):
        window = torch.tensor([ids[start : start + WINDOW]])
        losses.append(model(window, labels=window).loss.double())
    return math.exp(torch.stack(losses).mean())
