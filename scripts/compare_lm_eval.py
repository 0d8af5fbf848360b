#!/usr/bin/env python3
"""Scores the same questions with lm-evaluation-harness and with `qqq eval tasks`, and compares them question by question.

    pip install lm_eval==0.4.13 torch transformers
    qqq quantize MODEL.gguf -o FLOAT --recipe fp16
    scripts/compare_lm_eval.py FLOAT QQQ --data tasks/ --limit 500

The harness runs its own tasks, with its own prompts and metrics, on local files; nothing is downloaded. Its model is that
of transformers in float32. What must hold, else the exit code is 1: log-likelihoods are equal to --agreement, and so are choices,
where the two best answers are further apart than twice that; every such tie is listed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

EPILOG = "\n\n".join(__doc__.split("\n\n")[1:])
TASKS = ["piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande"]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a directory that transformers and qqq both read")
    parser.add_argument("qqq", type=lambda path: Path(path).absolute(), help="the command")
    parser.add_argument("--data", required=True, help="as qqq eval tasks has it")
    parser.add_argument("--tasks", default=",".join(TASKS), help="with commas between [default: %(default)s]")
    parser.add_argument("--limit", type=int, help="the first questions of each task only")
    parser.add_argument("--device", default="cpu", help="of both: cpu, cuda [default: %(default)s]")
    parser.add_argument("--dtype", default="float32", help="of the harness [default: %(default)s]")
    parser.add_argument("--batch-size", default="8", help="of the harness [default: %(default)s]")
    parser.add_argument(
        "--agreement",
        type=float,
        default=5e-5,
        help="share of a log-likelihood, of 10 nats at least [default: %(default)s]",
    )
    args = parser.parse_args()
    args.tasks = args.tasks.split(",")
    return args


def run_qqq(args: argparse.Namespace) -> tuple[dict, dict[str, list[dict]], float]:
    """Its report, the answers of each task, and the seconds of the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples.jsonl"
        command = [args.qqq, "eval", "tasks", args.model, "--tasks", ",".join(args.tasks), "--data", args.data]
        command += ["--samples", samples, "--device", args.device, "--json"]
        command += ["--limit", str(args.limit)] if args.limit else []
        start = time.monotonic()
        report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        seconds = time.monotonic() - start
        answers: dict[str, list[dict]] = {}
        for line in samples.read_text().splitlines():
            answer = json.loads(line)
            answers.setdefault(answer["task"], []).append(answer)
    return report, answers, seconds


def run_harness(args: argparse.Namespace, files: dict[str, str]) -> tuple:
    """Its results, its model, the seconds of evaluating, and those with loading the model."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    manager = TaskManager()

    def of_file(name: str) -> dict:
        """The harness's own task, its data set a file of ours."""
        split = "test" if name.startswith("arc") else "validation"
        data = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {split: files[name]}}}
        splits = {f"{each}_split": each if each == split else None for each in ("training", "validation", "test")}
        return {**load_yaml(manager.task_index[name].yaml_path), **data, **splits}

    tasks = manager.load([of_file(name) for name in args.tasks])
    start = time.monotonic()
    model = HFLM(pretrained=str(args.model), dtype=args.dtype, device=args.device, batch_size=args.batch_size)
    scoring = time.monotonic()
    results = evaluator.evaluate(lm=model, task_dict=tasks, limit=args.limit, log_samples=True)
    return results, model, time.monotonic() - scoring, time.monotonic() - start


def by_length(sample: dict, loglikelihoods: list[float]) -> list[float]:
    """Log-likelihoods for each character of a choice: what follows the delimiter."""
    lengths = [max(len(continuation) - 1, 1) for _, continuation in arguments(sample)]
    return [value / length for value, length in zip(loglikelihoods, lengths, strict=True)]


def arguments(sample: dict) -> list[tuple[str, str]]:
    """Context and continuation of each request."""
    return [tuple(pair) for pair in sample["arguments"]]


def main() -> None:
    args = parse_args()
    report, answers, seconds_qqq = run_qqq(args)
    files = {task["task"]: task["file"] for task in report["tasks"]}
    results, _, scoring, seconds_harness = run_harness(args, files)

    failed = False
    print("| task | n | acc, harness | acc, qqq | acc_norm, harness | acc_norm, qqq | largest difference, nats |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    notes = []
    for task in report["tasks"]:
        name = task["task"]
        samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
        ours = answers[name]
        if len(samples) != len(ours):
            sys.exit(f"{name}: {len(samples)} questions in the harness, {len(ours)} in qqq")
        largest = 0.0
        for sample, own in zip(samples, ours, strict=True):
            theirs = [float(loglikelihood) for loglikelihood, _ in sample["filtered_resps"]]
            differences = [abs(a - b) for a, b in zip(theirs, own["loglikelihoods"], strict=True)]
            largest = max(largest, *differences)
            allowed = args.agreement * max(10.0, *map(abs, theirs))
            if max(differences) > allowed:
                failed = True
                notes.append(f"{name}, line {own['line']}: log-likelihoods {theirs} and {own['loglikelihoods']}")
            right = {"acc": own["choice"] == own["target"]}
            if own.get("choice_norm") is not None:
                right["acc_norm"] = own["choice_norm"] == own["target"]
            for metric, mine in right.items():
                if bool(sample[metric]) != mine:
                    # By character, log-likelihoods are closer to each other; answers have one at least.
                    close = sorted(theirs if metric == "acc" else by_length(sample, theirs))
                    tie = close[-1] - close[-2] <= 2 * allowed
                    failed |= not tie
                    notes.append(f"{name}, line {own['line']}: {metric} differs ({'a' if tie else 'NO'} tie): {theirs}")
        row = [name, str(len(ours))]
        for metric in ("acc", "acc_norm"):
            theirs, mine = results["results"][name].get(f"{metric},none"), task.get(metric)
            error = results["results"][name].get(f"{metric}_stderr,none")
            if mine is None:
                row += ["-", "-"]
                continue
            figures = [(theirs, error), (mine["mean"], mine["standard_error"])]
            row += [f"{100 * mean:.2f} ± {100 * spread:.2f}" for mean, spread in figures]
            if abs(error - mine["standard_error"]) > 1e-9 and abs(theirs - mine["mean"]) < 1e-12:
                failed = True
                notes.append(f"{name}: the standard errors of {metric} differ: {error} and {mine['standard_error']}")
        print(f"| {' | '.join([*row, f'{largest:.1e}'])} |")
    print("\n".join(["", *notes]) if notes else "\nNo question differs.")
    print(f"\nSeconds of scoring: harness {scoring:.1f}, qqq {report['seconds']:.1f}")
    print(f"Seconds in all, models loaded: harness {seconds_harness:.1f}, qqq {seconds_qqq:.1f}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
