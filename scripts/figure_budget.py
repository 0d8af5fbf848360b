#!/usr/bin/env python3
"""KL divergence against bits per weight: uniform checkpoints of a model beside those of qqq quantize --budget.

    scripts/figure_budget.py ./SmolLM2-135M --text wiki.valid.txt --text howto.valid.txt --output figure-budget \\
        --budget 4.3 4.5 5 6 7 -- --calibration wiki.calib.txt --device cuda

What stands behind -- goes to every qqq quantize. Checkpoints that are there already are not made again, so a run that was
stopped goes on. Writes curve.md, curve.json and curve.svg into the output folder (qqq eval curve), and prints the table.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

# Name and options of what all layers get.
UNIFORM = {
    "channel": ["--group-size", "channel"],
    "g128": ["--group-size", "128"],
    "g64": ["--group-size", "64"],
    "g32": ["--group-size", "32"],
    "int8": ["--bits", "8"],
}


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and those of qqq quantize."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the float model")
    parser.add_argument("--text", action="append", required=True, help="held-out text; may be given several times")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints and figure")
    parser.add_argument("--budget", nargs="+", default=["4.5", "5", "6"], help="bits per weight")
    parser.add_argument("--uniform", nargs="*", default=["g64", "g32", "int8"], choices=UNIFORM)
    parser.add_argument("--limit", help="windows of each text that are scored")
    parser.add_argument("--window", help="tokens of a window")
    parser.add_argument("--device", help="where texts are scored; quantize has its own behind --")
    parser.add_argument("--qqq", default="qqq", help="the command")
    return parser.parse_args(arguments[:split]), arguments[split + 1 :]


def main() -> None:
    args, quantize = parse(sys.argv[1:])
    args.output.mkdir(parents=True, exist_ok=True)
    runs = {name: UNIFORM[name] for name in args.uniform}
    runs |= {f"budget-{bits}": ["--budget", bits] for bits in args.budget}
    for name, options in runs.items():
        path = args.output / name
        if not path.exists():
            print(f"== {name}", file=sys.stderr)
            subprocess.run([args.qqq, "quantize", args.model, "-o", path, *options, *quantize], check=True)
    command = [args.qqq, "eval", "curve", *(args.output / name for name in runs), "--baseline", args.model]
    for text in args.text:
        command += ["--text", text]
    for option in ["limit", "window", "device"]:
        value = getattr(args, option)
        command += [f"--{option}", value] if value else []
    command += ["--plot", args.output / "curve.svg", "--json"]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    (args.output / "curve.json").write_text(result)
    table = json.loads(result)["table"]
    (args.output / "curve.md").write_text(table)
    print(table, end="")


if __name__ == "__main__":
    main()
