#!/usr/bin/env python3
"""Sets recipes of `qqq quantize` beside the same methods in PyTorch, written from their papers: perplexities at equal settings.

    qqq quantize MODEL.gguf -o FLOAT --recipe fp16
    scripts/reference_recipes.py FLOAT QQQ --calibration wiki.calib.txt --text wiki.valid.txt --device cuda
    scripts/reference_recipes.py --self-test

Both sides calibrate on the same tokens, and are evaluated on the same windows, each by its own forward pass: here in float32,
with weights solved in float64. A Llama is needed (SmolLM2). Methods with random matrices run with --seeds seeds on both sides,
and geometric means are compared.

What must hold, else the exit code is 1: both give the float model the same perplexity to --agreement, and ours is at most
--tolerance above the reference's. The JSON file is written anew after each recipe, and the table beside it.
"""

import argparse
import json
import math
import shutil
import sys
import time
import traceback
from pathlib import Path

from comparing import Qqq, calibration_windows, evaluation_windows, perplexity

EPILOG = "\n\n".join(__doc__.split("\n\n")[1:])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?", help="float model: made by `qqq quantize --recipe fp16`")
    parser.add_argument("qqq", type=lambda path: Path(path).absolute(), nargs="?", help="the command")
    parser.add_argument("--self-test", action="store_true", help="only check the methods on a tiny random model")
    parser.add_argument("--calibration", type=Path, help="plain text")
    parser.add_argument("--text", type=Path, help="held-out plain text")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--recipes", help="which, with commas between [default: all]")
    parser.add_argument("--group-size", type=int, default=64, help="of W4A16 in groups")
    parser.add_argument("--windows", type=int, help="calibration windows [default: the paper's; omniquant: 16]")
    parser.add_argument("--window", type=int, help="tokens of one [default: the paper's; omniquant: 512]")
    parser.add_argument("--epochs", type=int, default=20, help="of omniquant")
    parser.add_argument("--steps", type=int, default=40, help="of searches for a threshold")
    parser.add_argument("--seeds", type=int, default=1, help="of methods with random matrices")
    parser.add_argument("--eval-window", type=int, default=2048)
    parser.add_argument("--limit", type=int, help="score the first windows only")
    parser.add_argument("--agreement", type=float, default=1e-3, help="of the float model [default: %(default)s]")
    parser.add_argument("--tolerance", type=float, default=0.01, help="of ours above [default: %(default)s]")
    parser.add_argument("--reference-only", action="store_true", help="do not run `qqq`")
    parser.add_argument("--work", type=Path, default=Path("reference-recipes"), help="folder for checkpoints and texts")
    parser.add_argument("--json", type=Path, help="file for all figures [default: results.json in --work]")
    args = parser.parse_args()
    args.json = args.json or args.work / "results.json"
    if not args.self_test:
        for name in ("model", "qqq", "calibration", "text"):
            if getattr(args, name) is None:
                parser.error(f"{name} is missing")
    return args


class Comparison:
    def __init__(self, args: argparse.Namespace):
        import torch
        import transformers
        from reference.model import load
        from reference.recipes import PAIRS
        from tokenizers import Tokenizer

        self.args, self.pairs = args, PAIRS
        self.names = args.recipes.split(",") if args.recipes else list(PAIRS)
        if unknown := [name for name in self.names if name not in PAIRS]:
            raise SystemExit(f"there is no recipe {', '.join(unknown)}: {', '.join(PAIRS)}")
        args.work.mkdir(parents=True, exist_ok=True)
        self.tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
        self.model = load(args.model, args.device)
        self.windows = evaluation_windows(self.tokenizer, args.text, args.eval_window, args.limit)
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        self.found = {"versions": versions | {"qqq": self.qqq(args.device).version()}, "rows": {}}
        self.found["settings"] = {key: str(value) for key, value in vars(args).items()}
        self.broken: list[str] = []

    def qqq(self, device: str) -> Qqq:
        return Qqq(self.args.qqq, device, [self.args.text], self.args.eval_window, self.args.limit)

    def ours(self, path: Path, device: str) -> float:
        return self.qqq(device).perplexities(path)[self.args.text.name]

    def theirs(self, model) -> float:
        return perplexity(model.logits, self.windows, self.args.device)

    def float_model(self) -> None:
        row = self.found["rows"]["float"] = {"settings": "", "reference": [self.theirs(self.model)]}
        if self.args.reference_only:
            return
        row["ours"] = [self.ours(self.args.model, self.args.device)]
        if abs(row["ours"][0] / row["reference"][0] - 1) > self.args.agreement:
            self.broken.append("the float model's perplexities differ")

    def recipe(self, name: str) -> None:
        import torch
        from reference.recipes import Task

        args, pair = self.args, self.pairs[name]
        settings = pair.settings.format(g=args.group_size, e=args.epochs)
        tokens, calibration = None, []
        if pair.text:
            count, length = args.windows or pair.text[0], args.window or pair.text[1]
            text = args.work / f"calibration-{count}x{length}.txt"
            windows = calibration_windows(self.tokenizer, args.calibration, count, length, text)
            tokens = torch.tensor(windows, device=args.device)
            calibration = [str(part) for part in ["--calibration", text, "--windows", count, "--window", length]]
            settings += f"; {count} x {length} tokens"
        row = self.found["rows"][name] = {"settings": settings, "seconds_reference": 0.0, "seconds_ours": 0.0}
        row |= {"reference": [], "ours": []}
        for seed in range(args.seeds if pair.is_random else 1):
            start = time.monotonic()
            task = Task(self.model.copy(), tokens, args.group_size, seed, args.epochs, args.steps)
            with torch.no_grad():
                model = pair.reference(task)
            if args.device == "cuda":
                torch.cuda.synchronize()
            row["seconds_reference"] += time.monotonic() - start
            row["reference"].append(self.theirs(model))
            del task, model
            if args.reference_only:
                continue
            device = (pair.instead_of_gpu if args.device == "cuda" else None) or args.device
            out = args.work / f"{name}-ours"
            shutil.rmtree(out, ignore_errors=True)
            options = pair.ours.format(g=args.group_size, e=args.epochs).split()
            options += ["--seed", str(seed)] if pair.is_random else []
            row["seconds_ours"] += self.qqq(device).quantize(args.model, options, calibration, out)
            row["ours"].append(self.ours(out, device))
        if not args.reference_only:
            row["ratio"] = math.exp(
                sum(math.log(a / b) for a, b in zip(row["ours"], row["reference"])) / len(row["ours"])
            )
            if not row["ratio"] <= 1 + args.tolerance:
                self.broken.append(f"{name}: ours has {row['ratio']:.4f} times the perplexity of the reference")

    def step(self, name: str, work) -> None:
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

    def table(self) -> str:
        lines = [
            "| recipe | settings | reference | ours | ours / reference | seconds, reference, ours |",
            "|---" * 6 + "|",
        ]
        for name, row in self.found["rows"].items():
            values = [", ".join(f"{value:.4f}" for value in row.get(side, [])) for side in ("reference", "ours")]
            ratio = f"{row['ratio']:.4f}" if "ratio" in row else ""
            times = ", ".join(f"{row[key]:.1f}" for key in ("seconds_reference", "seconds_ours") if key in row)
            lines.append(f"| {name} | {row['settings']} | {values[0]} | {values[1]} | {ratio} | {times} |")
        return "\n".join(lines)


def main() -> int:
    args = parse_args()
    if args.self_test:
        from reference.self_test import self_test

        return self_test()
    comparison = Comparison(args)
    comparison.step("float", comparison.float_model)
    for name in comparison.names:
        comparison.step(name, lambda name=name: comparison.recipe(name))
    print(json.dumps(comparison.found["versions"]))
    print(comparison.table())
    for reason in comparison.broken:
        print(f"does not hold: {reason}")
    return 1 if comparison.broken else 0


if __name__ == "__main__":
    sys.exit(main())
