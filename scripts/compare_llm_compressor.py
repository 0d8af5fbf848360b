#!/usr/bin/env python3
"""Sets recipes of `qqq quantize` beside llm-compressor's at equal settings: perplexities of both results, by both evaluators.

    pip install llmcompressor==0.14.0
    qqq quantize MODEL.gguf -o FLOAT --recipe fp16
    scripts/compare_llm_compressor.py FLOAT QQQ --calibration wiki.calib.txt --texts wiki.valid.txt,howto.valid.txt --device cuda

Both sides calibrate on the same tokens: of the calibration text a beginning is taken that is exactly as long as all windows
together, so that `qqq quantize` has no choice where its windows start. Perplexity is that of `qqq eval perplexity`: windows side
by side, every token but a window's first. "transformers" are checkpoints as transformers and compressed-tensors run them.

What must hold, else the exit code is 1: both evaluators give the float model the same perplexity, and llm-compressor's GPTQ
checkpoint has after `qqq convert --to compressed-tensors` what transformers gives it (both to --agreement); ours is at most
--tolerance above theirs, both by our evaluator; every step succeeds. After each pair the JSON file, and the table beside it, are
written anew, so that what was found until then remains.

Small settings, to try the script: --windows 2 --window 256 --eval-window 256 --limit 2.
"""

import argparse
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from comparing import Qqq, calibration_windows, evaluation_windows, perplexity

EPILOG = "\n\n".join(__doc__.split("\n\n")[1:])
# Tokens that llm-compressor calibrates on at once.
BATCH_TOKENS = 16 << 10
NOT_WEIGHTS = ["*token*", "chat_template*", "special_tokens_map.json", "generation_config.json"]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="float model: a directory made by `qqq quantize --recipe fp16`")
    parser.add_argument("qqq", type=lambda path: Path(path).absolute(), help="the command")
    parser.add_argument("--calibration", type=Path, required=True, help="plain text")
    parser.add_argument("--texts", required=True, help="held-out plain texts, with commas between")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument(
        "--dtype", default="auto", help="type that llm-compressor and transformers compute in: auto, float32, ..."
    )
    parser.add_argument("--pairs", default=",".join(PAIRS), help="which, with commas between [default: %(default)s]")
    parser.add_argument("--group-size", type=int, default=64, help="of 4-bit weights")
    parser.add_argument("--windows", type=int, help="calibration windows [default: those of the recipe]")
    parser.add_argument("--window", type=int, help="tokens of one [default: those of the recipe]")
    parser.add_argument("--eval-window", type=int, default=2048)
    parser.add_argument("--limit", type=int, help="score the first windows only")
    parser.add_argument("--agreement", type=float, default=1e-3, help="of evaluators, relative [default: %(default)s]")
    parser.add_argument("--tolerance", type=float, default=0.01, help="of ours above theirs [default: %(default)s]")
    parser.add_argument(
        "--work", type=Path, default=Path("compare-llm-compressor"), help="folder for checkpoints and texts"
    )
    parser.add_argument("--json", type=Path, help="file for all figures [default: results.json in --work]")
    args = parser.parse_args()
    args.pairs = args.pairs.split(",")
    args.texts = [Path(text) for text in args.texts.split(",")]
    args.json = args.json or args.work / "results.json"
    if unknown := [name for name in args.pairs if name not in PAIRS]:
        parser.error(f"there is no pair {', '.join(unknown)}: {', '.join(PAIRS)}")
    for path in [args.model / "config.json", args.qqq, args.calibration, *args.texts]:
        if not path.is_file():
            parser.error(f"{path} is not a file")
    return args


# What llm-compressor is told.


def weights(bits: int, group_size: int | None):
    """Symmetric integers, whose scales are those of the largest weight."""
    from compressed_tensors.quantization import QuantizationArgs

    strategy = {"strategy": "group", "group_size": group_size} if group_size else {"strategy": "channel"}
    return QuantizationArgs(num_bits=bits, type="int", symmetric=True, observer="memoryless_minmax", **strategy)


def scheme(bits: int, group_size: int | None, activations: int | None) -> dict:
    """Of all layers but the head; activations are rounded to nearest, per token."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    inputs = activations and QuantizationArgs(
        num_bits=activations, type="int", symmetric=True, strategy="token", dynamic=True
    )
    layers = QuantizationScheme(targets=["Linear"], weights=weights(bits, group_size), input_activations=inputs)
    return {"config_groups": {"group_0": layers}, "ignore": ["lm_head"]}


def gptq(group_size: int) -> list:
    from llmcompressor.modifiers.gptq import GPTQModifier

    return [GPTQModifier(actorder="static", dampening_frac=0.01, **scheme(4, group_size, None))]


def awq(group_size: int, duo_scaling: bool) -> list:
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    return [AWQModifier(duo_scaling=duo_scaling), QuantizationModifier(**scheme(4, group_size, None))]


def smoothquant() -> list:
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    return [SmoothQuantModifier(smoothing_strength=0.5), QuantizationModifier(**scheme(8, None, 8))]


def nearest(bits: int, group_size: int | None, activations: int | None) -> list:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    return [QuantizationModifier(**scheme(bits, group_size, activations))]


@dataclass(frozen=True)
class Pair:
    """A recipe in both tools."""

    settings: str
    # Of a group size, llm-compressor's recipe.
    theirs: Callable[[int], list]
    # Options of `qqq quantize`; {g} is the group size.
    ours: str
    # Calibration windows and their tokens, as in the recipe of ours; None: reads no text.
    text: tuple[int, int] | None = None
    # Whether theirs is converted as well.
    round_trip: bool = False

    def options(self, group_size: int) -> list[str]:
        return self.ours.format(g=group_size).split()


AWQ = "--recipe awq --group-size {g}"
PAIRS = {
    "gptq": Pair(
        "W4A16 g{g}, act-order with static groups, damping 0.01",
        gptq,
        "--recipe gptq --group-size {g} --damping 0.01",
        (128, 2048),
        round_trip=True,
    ),
    "awq": Pair("W4A16 g{g}, scales by activations alone", lambda g: awq(g, False), AWQ, (128, 512)),
    "awq-duo": Pair("W4A16 g{g}, theirs by activations and weights", lambda g: awq(g, True), AWQ, (128, 512)),
    "smoothquant": Pair("W8A8, strength 0.5", lambda _: smoothquant(), "--recipe smoothquant --alpha 0.5", (512, 512)),
    "rtn-w4a16": Pair(
        "W4A16 g{g}", lambda g: nearest(4, g, None), "--recipe rtn --bits 4 --activations half --group-size {g}"
    ),
    "rtn-w8a8": Pair("W8A8", lambda _: nearest(8, None, 8), "--recipe rtn --bits 8"),
}


# Evaluation in transformers.


class Transformers:
    """transformers, with compressed-tensors for quantized checkpoints."""

    def __init__(self, args: argparse.Namespace, tokenizer):
        self.args = args
        self.tokens = {
            text.name: evaluation_windows(tokenizer, text, args.eval_window, args.limit) for text in args.texts
        }

    def load(self, model: Path):
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(model, dtype=self.args.dtype)

    def perplexities(self, path: Path) -> dict[str, float]:
        import torch

        model = self.load(path).to(self.args.device).eval()

        def logits(ids: torch.Tensor) -> torch.Tensor:
            return model(input_ids=ids, use_cache=False).logits

        with torch.inference_mode():
            return {name: perplexity(logits, windows, self.args.device) for name, windows in self.tokens.items()}


def quantize_theirs(transformers: Transformers, modifiers: list, windows: list[list[int]] | None, out: Path) -> float:
    """Writes llm-compressor's checkpoint; seconds that quantizing took."""
    import torch
    from llmcompressor import oneshot
    from llmcompressor.pipelines.cache import IntermediatesCache
    from torch.utils.data import DataLoader

    def batch(rows: list[list[int]]) -> dict:
        ids = torch.tensor(rows)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    model = transformers.load(transformers.args.model)
    start = time.monotonic()
    # Hidden states stay where they are computed.
    how = {"sequential_offload_device": transformers.args.device}
    if transformers.args.device == "cpu":
        # Its AWQ asks for memory that a GPU can copy from, which PyTorch has only where there is one.
        IntermediatesCache.pin_memory = lambda *_: None
    if windows:
        size = max(1, BATCH_TOKENS // len(windows[0]))
        how["dataset"] = DataLoader(windows, batch_size=size, collate_fn=batch)
    oneshot(model=model, recipe=modifiers, **how)
    seconds = time.monotonic() - start
    model.save_pretrained(out, save_compressed=True)
    for pattern in NOT_WEIGHTS:
        for file in transformers.args.model.glob(pattern):
            shutil.copy(file, out)
    return seconds


# The comparison.


class Comparison:
    """What is found, and what does not hold."""

    def __init__(self, args: argparse.Namespace):
        from tokenizers import Tokenizer

        self.args = args
        args.work.mkdir(parents=True, exist_ok=True)
        self.tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
        self.transformers = Transformers(args, self.tokenizer)
        self.qqq = Qqq(args.qqq, args.device, args.texts, args.eval_window, args.limit)
        # Ours, by its options: two pairs may share it.
        self.ours: dict[tuple[str, ...], dict] = {}
        self.found = {"versions": self.versions(), "settings": {k: str(v) for k, v in vars(args).items()}, "pairs": {}}
        self.broken: list[str] = []

    def versions(self) -> dict[str, str]:
        from importlib.metadata import version

        names = ["llmcompressor", "compressed-tensors", "transformers", "torch"]
        return {name: version(name) for name in names} | {"qqq": self.qqq.version()}

    def step(self, name: str, work: Callable[[], None]) -> None:
        """Runs a step whose failure others survive, and keeps what was found until then."""
        start = time.monotonic()
        try:
            work()
        except Exception as error:
            traceback.print_exc()
            self.broken.append(f"{name}: {type(error).__name__}: {str(error).strip()[:400]}")
        self.found["broken"] = self.broken
        self.args.json.write_text(json.dumps(self.found, indent=1) + "\n")
        self.args.json.with_suffix(".md").write_text(self.table() + "\n")
        print(f"== {name}: {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)

    def agree(self, what: str, ours: dict[str, float], theirs: dict[str, float]) -> None:
        for text, expected in theirs.items():
            if not abs(ours[text] / expected - 1) <= self.args.agreement:
                self.broken.append(f"{what}, {text}: {ours[text]:.4f}, in transformers {expected:.4f}")

    def float_model(self) -> None:
        row = self.found["float"] = {
            "ours_by_us": self.qqq.perplexities(self.args.model),
            "ours_in_transformers": self.transformers.perplexities(self.args.model),
        }
        self.agree("the float model", row["ours_by_us"], row["ours_in_transformers"])

    def fresh(self, name: str) -> Path:
        out = self.args.work / name
        shutil.rmtree(out, ignore_errors=True)
        return out

    def quantize_ours(self, name: str, pair: Pair, calibration: list[str]) -> dict:
        options = pair.options(self.args.group_size)
        if (key := (*options, *calibration)) not in self.ours:
            out = self.fresh(f"{name}-ours")
            seconds = self.qqq.quantize(self.args.model, options, calibration, out)
            self.ours[key] = {
                "seconds_ours": seconds,
                "ours_by_us": self.qqq.perplexities(out),
                "ours_in_transformers": self.transformers.perplexities(out),
            }
        return self.ours[key]

    def pair(self, name: str) -> None:
        pair, args = PAIRS[name], self.args
        row = self.found["pairs"][name] = {"settings": pair.settings.format(g=args.group_size)}
        windows, calibration = None, []
        if pair.text:
            count, length = args.windows or pair.text[0], args.window or pair.text[1]
            text = args.work / f"calibration-{count}x{length}.txt"
            windows = calibration_windows(self.tokenizer, args.calibration, count, length, text)
            calibration = [str(part) for part in ["--calibration", text, "--windows", count, "--window", length]]
            row["settings"] += f"; {count} x {length} tokens"
        row.update(self.quantize_ours(name, pair, calibration))
        theirs = self.fresh(f"{name}-theirs")
        row["seconds_theirs"] = quantize_theirs(self.transformers, pair.theirs(args.group_size), windows, theirs)
        row["theirs_in_transformers"] = self.transformers.perplexities(theirs)
        row["theirs_by_us"] = self.qqq.perplexities(theirs)
        row["ratio"] = {text: row["ours_by_us"][text] / ours for text, ours in row["theirs_by_us"].items()}
        self.broken += [
            f"{name}, {text}: ours has {ratio:.4f} times the perplexity of theirs"
            for text, ratio in row["ratio"].items()
            if not ratio <= 1 + args.tolerance
        ]
        if pair.round_trip:
            converted = self.fresh(f"{name}-converted")
            self.qqq.run("convert", theirs, "-o", converted, "--to", "compressed-tensors", device=False)
            row["theirs_converted_by_us"] = self.qqq.perplexities(converted)
            self.agree(f"{name}, converted", row["theirs_converted_by_us"], row["theirs_in_transformers"])

    def table(self) -> str:
        """Markdown, a line for each recipe and text."""
        columns = {
            "theirs_in_transformers": "theirs, transformers",
            "theirs_by_us": "theirs, qqq",
            "theirs_converted_by_us": "theirs converted, qqq",
            "ours_in_transformers": "ours, transformers",
            "ours_by_us": "ours, qqq",
        }
        lines = [
            f"| recipe | settings | text | {' | '.join(columns.values())} | ours / theirs | seconds, theirs, ours |",
            "|---" * (len(columns) + 5) + "|",
        ]

        def cell(row: dict, key: str, text: str) -> str:
            return f"{row[key][text]:.4f}" if key in row else ""

        rows = {"float": self.found.get("float", {})} | self.found["pairs"]
        for name, row in rows.items():
            times = [f"{row[key]:.1f}" if key in row else "-" for key in ("seconds_theirs", "seconds_ours")]
            for path in self.args.texts:
                cells = [name, row.get("settings", ""), path.name, *(cell(row, key, path.name) for key in columns)]
                lines.append(f"| {' | '.join([*cells, cell(row, 'ratio', path.name), ', '.join(times)])} |")
        return "\n".join(lines)


def main() -> int:
    args = parse_args()
    if args.device == "cpu":
        # llm-compressor takes a GPU that it sees.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # It tells of every layer, and of every batch of each.
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    comparison = Comparison(args)
    comparison.step("float", comparison.float_model)
    for name in args.pairs:
        comparison.step(name, lambda name=name: comparison.pair(name))
    print(json.dumps(comparison.found["versions"]))
    print(comparison.table())
    for reason in comparison.broken:
        print(f"does not hold: {reason}")
    return 1 if comparison.broken else 0


if __name__ == "__main__":
    sys.exit(main())
