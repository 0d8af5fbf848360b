#!/usr/bin/env python3
"""Makes a checkpoint with GPTQModel, converts it with `qqq convert`, and compares perplexities: GPTQModel's own, and ours of the
converted one with 16-bit activations.

    pip install gptqmodel==5.8.0
    qqq quantize MODEL.gguf -o FLOAT --recipe fp16
    scripts/compare_gptqmodel.py FLOAT QQQ --calibration wiki.calib.txt --texts wiki.valid.txt --limit 4

GPTQModel's PyTorch kernel makes weights of the codes; they are multiplied in float32, on the CPU. What must hold, else the exit code is 1: both are equal to
--agreement, of the float model and of each form of checkpoint. W4A8, what `qqq convert` makes by default, is told as well.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

from comparing import Qqq, calibration_windows, evaluation_windows, perplexity

EPILOG = "\n\n".join(__doc__.split("\n\n")[1:])
# What GPTQModel is told besides bits and groups.
FORMS = {
    "plain": {"desc_act": False, "act_group_aware": False},
    "act-order": {"desc_act": True, "act_group_aware": False},
    "group-aware": {"desc_act": False, "act_group_aware": True},
    "asymmetric": {"desc_act": False, "act_group_aware": False, "sym": False},
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="float model: a directory made by `qqq quantize --recipe fp16`")
    parser.add_argument("qqq", type=lambda path: Path(path).absolute(), help="the command")
    parser.add_argument("--calibration", type=Path, required=True, help="plain text")
    parser.add_argument("--texts", required=True, help="held-out plain texts, with commas between")
    parser.add_argument("--forms", default="plain", help=f"which, with commas between: {', '.join(FORMS)}")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--windows", type=int, default=8, help="calibration windows")
    parser.add_argument("--window", type=int, default=512, help="tokens of one")
    parser.add_argument("--eval-window", type=int, default=512)
    parser.add_argument("--limit", type=int, help="score the first windows only")
    parser.add_argument("--agreement", type=float, default=1e-3, help="relative [default: %(default)s]")
    parser.add_argument("--work", type=Path, default=Path("compare-gptqmodel"), help="folder for checkpoints and texts")
    args = parser.parse_args()
    args.forms = args.forms.split(",")
    args.texts = [Path(text) for text in args.texts.split(",")]
    if unknown := [name for name in args.forms if name not in FORMS]:
        parser.error(f"there is no form {', '.join(unknown)}: {', '.join(FORMS)}")
    return args


def quantize(args: argparse.Namespace, form: str, windows: list[list[int]], out: Path) -> float:
    """Writes GPTQModel's checkpoint; seconds that quantizing took."""
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    config = QuantizeConfig(bits=4, group_size=args.group_size, device="cpu", offload_to_disk=False, **FORMS[form])
    model = GPTQModel.load(str(args.model), config, backend=BACKEND.TORCH, dtype=torch.float16)
    start = time.monotonic()
    # Tokens as they are: each window a document of its own.
    model.quantize([{"input_ids": window, "attention_mask": [1] * len(window)} for window in windows], batch_size=1)
    seconds = time.monotonic() - start
    model.save(str(out))
    return seconds


def in_float16(model: Path, out: Path) -> Path:
    """The float model in float16. A checkpoint of GPTQModel's keeps the float model's type, and a product of code and scale is
    rounded to that: in bfloat16 this alone moves perplexity by 1e-3."""
    import torch
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(model, dtype=torch.float16).save_pretrained(out)
    for file in model.glob("*token*.json"):
        shutil.copy(file, out)
    return out


def widened(model):
    """The model in float32, with the weights that GPTQModel's kernel makes of its codes: it multiplies in 16 bits alone, which
    most CPUs are slow at."""
    import torch
    from gptqmodel.nn_modules.qlinear.torch import TorchQuantLinear

    for name, module in list(model.named_modules()):
        if isinstance(module, TorchQuantLinear):
            weight = module.dequantize_weight().T.float()
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None)
            linear.weight.data = weight.contiguous()
            if module.bias is not None:
                linear.bias.data = module.bias.float()
            model.set_submodule(name, linear)
    return model.float()


def main() -> int:
    args = parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from importlib.metadata import version

    import torch
    from gptqmodel import BACKEND, GPTQModel
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    qqq = Qqq(args.qqq, "cpu", args.texts, args.eval_window, args.limit)
    tokens = {text.name: evaluation_windows(tokenizer, text, args.eval_window, args.limit) for text in args.texts}
    windows = calibration_windows(tokenizer, args.calibration, args.windows, args.window, args.work / "calibration.txt")

    def perplexities(model) -> dict[str, float]:
        def logits(ids: torch.Tensor) -> torch.Tensor:
            return model(input_ids=ids, use_cache=False).logits

        return {name: perplexity(logits, windows, "cpu") for name, windows in tokens.items()}

    def fresh(name: str) -> Path:
        out = args.work / name
        shutil.rmtree(out, ignore_errors=True)
        return out

    args.model = in_float16(args.model, fresh("float16"))
    versions = {name: version(name) for name in ("gptqmodel", "transformers", "torch")} | {"qqq": qqq.version()}
    float_model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    rows = {"float": {"theirs": perplexities(float_model), "ours": qqq.perplexities(args.model)}}
    del float_model
    for form in args.forms:
        theirs = fresh(form)
        row = rows[form] = {"seconds": quantize(args, form, windows, theirs)}
        loaded = GPTQModel.load(str(theirs), backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)
        row["theirs"] = perplexities(widened(loaded.model).eval())
        del loaded
        for target in ("compressed-tensors", "w4a8"):
            converted = fresh(f"{form}-{target}")
            qqq.run("convert", theirs, "-o", converted, "--to", target, device=False)
            row["ours" if target == "compressed-tensors" else "w4a8"] = qqq.perplexities(converted)
        (args.work / "results.json").write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")
    print(json.dumps(versions))
    print("| checkpoint | text | GPTQModel | qqq, 16-bit activations | ratio | qqq, W4A8 |\n|---|---|---|---|---|---|")
    agree = True
    for name, row in rows.items():
        for text, theirs in row["theirs"].items():
            ratio = row["ours"][text] / theirs
            agree &= abs(ratio - 1) <= args.agreement
            int8 = f"{row['w4a8'][text]:.4f}" if "w4a8" in row else ""
            print(f"| {name} | {text} | {theirs:.4f} | {row['ours'][text]:.4f} | {ratio:.5f} | {int8} |")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
