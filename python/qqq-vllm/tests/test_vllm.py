"""A real vLLM on the CPU against our own engine: the same kernels behind two engines must give the same model."""

import json
import math
import re
import shutil
import statistics

import pytest
from conftest import assert_same_greedy, qqq, quantize, run_vllm

pytest.importorskip("vllm")
torch = pytest.importorskip("torch")

PROMPTS = ["The capital of France is", "def fibonacci(n):", "Once upon a time there was a"]
NEW = 24
WINDOW, WINDOWS = 512, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def tokenizer_files(folder, smollm2, text):
    """A checkpoint whose tokenizer other models borrow."""
    return quantize(smollm2, folder / "64", text, "--group-size", 64)


def run_smollm2(checkpoint, text, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer(text.read_text()).input_ids
    run = run_vllm(
        tmp_path,
        model=str(checkpoint),
        quantization="qqq",
        # One more than a window: vLLM always adds a token.
        max_model_len=WINDOW + 8,
        prompts=[tokenizer(p).input_ids for p in PROMPTS],
        windows=[ids[i * WINDOW : (i + 1) * WINDOW] for i in range(WINDOWS)],
        max_tokens=NEW,
    )
    assert_loaded(run)
    return run


def assert_loaded(run):
    assert run.code == 0, run.log
    # What newer versions say of a parameter whose type is not the tensor's; the model's own may be of another one.
    named = re.findall(r"Attempted to load weight (\S+)", run.log)
    assert [name for name in named if re.search(r"\.(B|s_channel|s_group|weight_(packed|scale|shape))$", name)] == []


@pytest.mark.parametrize("group", ["channel", "64"])
def test_smollm2_as_in_our_engine(group, tokenizer_files, folder, smollm2, text, tmp_path):
    checkpoint = tokenizer_files if group == "64" else quantize(smollm2, folder / group, text, "--group-size", group)
    run = run_smollm2(checkpoint, text, tmp_path)
    layout = "per channel" if group == "channel" else "in groups of 64"
    for layer, shape in [("qkv_proj", "960 x 576"), ("gate_up_proj", "3072 x 576"), ("down_proj", "576 x 1536")]:
        assert f"{layer}: int4 weights {layout} ({shape}), int8 activations, kernel " in run.log

    # What counts as a tie is measured: rounding activations to int8 turns differences in a float's last place into whole
    # steps, so two engines that round differently differ as much as one does from itself after a change of the angles of
    # its rotary embedding by a few millionths.
    changed = tmp_path / "changed"
    shutil.copytree(checkpoint, changed)
    config = json.loads((changed / "config.json").read_text())
    config["rope_theta"] *= 1 + 5e-6
    (changed / "config.json").write_text(json.dumps(config))
    other = run_smollm2(changed, text, tmp_path)
    pairs = list(zip(run.result["logprobs"], other.result["logprobs"], strict=True))

    # A perplexity is a mean of so many log-likelihoods: it may be four times as far off as chance takes it.
    chance = statistics.stdev(a - b for a, b in pairs) / math.sqrt(len(pairs))
    assert 0 < chance < 0.01
    ours = qqq("eval", "perplexity", checkpoint, "--text", text, "--window", WINDOW, "--limit", WINDOWS)
    assert math.log(run.result["perplexity"]) == pytest.approx(math.log(ours["perplexity"]), abs=4 * chance)

    if group == "channel":
        # Rounded to nearest per channel, this model is so unstable that its own tokens change with the last bits of its
        # parameters: they say nothing about the engine.
        return

    # Only at tokens that greedy decoding might take: the less likely a token, the wider its log-likelihood scatters, and the
    # text has some that are not expected at all.
    noise = [abs(a - b) for a, b in pairs if a > math.log(0.05)]
    assert 0 < max(noise) < 1
    for prompt, answer in zip(PROMPTS, run.result["answers"]):
        own = qqq("generate", checkpoint, "--raw", "-p", prompt, "-n", NEW)
        assert_same_greedy(own["tokens"], answer, max(noise))


@pytest.fixture(scope="module")
def small(tokenizer_files, folder):
    """A small random model with biases, whose shapes the QQQ tiles take; as float."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=49152,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.08,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.to(torch.float16).save_pretrained(folder / "float")
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(tokenizer_files / file, folder / "float" / file)
    return folder / "float"


@pytest.fixture(scope="module")
def tiles(small, text):
    """It in QQQ tiles, with the scales of the reference."""
    options = {"channel": [], "128": ["--group-scales", "half"]}
    return {
        group: quantize(small, small.parent / f"tiles-{group}", text, "--format", "qqq", "--group-size", group, *more)
        for group, more in options.items()
    }


# Of a difference of two logits of this random model: changing its rms_norm_eps by a hundredth moves log-likelihoods of single
# tokens by up to 0.1.
SMALL_TIE = 0.2
PROMPT = "Some words to begin with, and a few more"


def run_small(checkpoint, tmp_path, **engine):
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(checkpoint).encode(PROMPT)
    run = run_vllm(tmp_path, model=str(checkpoint), prompts=[ids], windows=[ids * 4], max_tokens=NEW, **engine)
    assert_loaded(run)
    return run


def test_qqq_tiles_without_a_word_about_quantization(tiles, tmp_path):
    run = run_small(tiles["channel"], tmp_path, dtype="bfloat16")
    assert "qkv_proj: int4 weights per channel (512 x 256), int8 activations" in run.log
    own = qqq("generate", tiles["channel"], "--raw", "-p", PROMPT, "-n", NEW)
    assert_same_greedy(own["tokens"], run.result["answers"][0], SMALL_TIE)


def test_eager_compiled_and_on_two_ranks(tiles, tmp_path):
    eager = run_small(tiles["128"], tmp_path)
    assert "qkv_proj: int4 weights in groups of 128 (512 x 256), int8 activations" in eager.log
    own = qqq("generate", tiles["128"], "--raw", "-p", PROMPT, "-n", NEW)
    assert_same_greedy(own["tokens"], eager.result["answers"][0], SMALL_TIE)

    # Traced and made functional, as for Inductor, whose C++ takes minutes to compile.
    compiled = run_small(tiles["128"], tmp_path, enforce_eager=False, compilation_config={"backend": "aot_eager"})
    assert compiled.result["answers"][0]["tokens"] == eager.result["answers"][0]["tokens"]
    assert compiled.result["logprobs"] == pytest.approx(eager.result["logprobs"], abs=0.1)

    two = run_small(tiles["128"], tmp_path, tensor_parallel_size=2, env={"VLLM_CPU_OMP_THREADS_BIND": "0|1"})
    assert "qkv_proj: int4 weights in groups of 128 (256 x 256), int8 activations" in two.log
    assert_same_greedy(eager.result["answers"][0]["tokens"], two.result["answers"][0], SMALL_TIE)


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_int8_output_head(ranks, small, text, tmp_path):
    checkpoint = quantize(small, tmp_path / "head", text, "--head", "int8", "--group-size", "128")
    more = {} if ranks == 1 else {"tensor_parallel_size": 2, "env": {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}}
    run = run_small(checkpoint, tmp_path, quantization="qqq", **more)
    assert f"lm_head: int8 weights per channel ({49152 // ranks} x 256), int8 activations" in run.log
    own = qqq("generate", checkpoint, "--raw", "-p", PROMPT, "-n", NEW)
    assert_same_greedy(own["tokens"], run.result["answers"][0], SMALL_TIE)


def test_layers_of_several_kinds_within_a_budget(small, text, tmp_path):
    checkpoint = quantize(small, tmp_path / "mixed", text, "--budget", 5, "--group-size", "128", "--max-kld", "off")
    report = json.loads((checkpoint / "quantization_report.json").read_text())
    kinds = {(site["name"].rpartition(".")[2], site["chosen"]) for site in report["budget"]["sites"]}
    run = run_small(checkpoint, tmp_path, quantization="qqq")
    for module, precision in kinds:
        weights = {"int8": "int8 weights per channel"}.get(precision) or f"int4 weights in groups of {precision[6:]}"
        assert re.search(rf"{module}: {weights} \(\d+ x \d+\), int8 activations", run.log)
    precisions = {precision for _, precision in kinds}
    assert "int8" in precisions and len(precisions) > 1
    own = qqq("generate", checkpoint, "--raw", "-p", PROMPT, "-n", NEW)
    assert_same_greedy(own["tokens"], run.result["answers"][0], SMALL_TIE)


# What their configurations have beside the sizes.
FAMILIES = {
    # Fused projections; most of a head turns.
    "Phi3": {"partial_rotary_factor": 0.75, "original_max_position_embeddings": 512, "pad_token_id": 0},
    # Norms on both sides, windows that the prompt crosses, two bases of the rotary embedding.
    "Gemma3Text": {"head_dim": 64, "query_pre_attn_scalar": 48, "sliding_window": 16, "sliding_window_pattern": 2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_beside_llama(family, tokenizer_files, text, tmp_path):
    import transformers

    torch.manual_seed(2)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=49152,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.08,
        bos_token_id=1,
        eos_token_id=2,
        **FAMILIES[family],
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=0.0 if family.startswith("Gemma") else 1.0, std=0.1)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "float")
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(tokenizer_files / file, tmp_path / "float" / file)
    checkpoint = quantize(tmp_path / "float", tmp_path / "out", text, "--transform", "none", "--group-size", "128")
    run = run_small(checkpoint, tmp_path)
    assert "qkv_proj: int4 weights in groups of 128 (512 x 256), int8 activations" in run.log
    own = qqq("generate", checkpoint, "--raw", "-p", PROMPT, "-n", NEW)
    assert_same_greedy(own["tokens"], run.result["answers"][0], SMALL_TIE)


def test_a_missing_tensor_is_named(tiles, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiles["128"], broken)
    (file,) = broken.glob("*.safetensors")
    tensors = load_file(file)
    del tensors["model.layers.1.self_attn.k_proj.s_group"]
    save_file(tensors, file)
    run = run_vllm(tmp_path, model=str(broken), prompts=[[1, 2]])
    assert run.code != 0
    assert "the checkpoint has no model.layers.1.self_attn.k_proj.s_group" in run.log
