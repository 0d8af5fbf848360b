#!/usr/bin/env python3
"""Scores the same questions with lm-evaluation-harness and with `qqq eval tasks`, and compares them question by question.

    pip install lm_eval==0.4.13 torch transformers
    qqq quantize MODEL.gguf -o FLOAT --recipe fp16
    scripts/compare_lm_eval.py FLOAT QQQ --data tasks/ --limit 500

The harness runs its own tasks, with its own prompts and metrics, on local files; nothing is downloaded. Its model is that
of transformers in float32; of a W4A8 checkpoint its weights are decompressed, and the inputs of its layers rounded to int8 as
vLLM's kernels and ours do: by 127 steps to a token's largest magnitude, where compressed-tensors itself takes 127.5. What must
hold, else the exit code is 1: log-likelihoods are equal to --agreement, and so are choices, where the two best answers are
further apart than twice that; every such tie is listed.
"""

import argparse
import functools
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
    parser.add_argument("--fewshot", type=int, default=0, help="examples before each question [default: %(default)s]")
    parser.add_argument("--chat-template", action="store_true", help="ask in the model's chat template")
    parser.add_argument("--no-multiturn", dest="multiturn", action="store_false", help="examples in the question's turn")
    parser.add_argument("--system-instruction", help="what comes before all")
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
        command += ["--fewshot", str(args.fewshot)]
        if args.chat_template:
            command += ["--chat-template", "--fewshot-as-multiturn", str(args.multiturn).lower()]
        command += ["--system-instruction", args.system_instruction] if args.system_instruction else []
        start = time.monotonic()
        report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        seconds = time.monotonic() - start
        answers: dict[str, list[dict]] = {}
        for line in samples.read_text().splitlines():
            answer = json.loads(line)
            answers.setdefault(answer["task"], []).append(answer)
    return report, answers, seconds


def rows_of(path: str) -> list[dict]:
    """The records of a file of JSON lines or parquet."""
    if path.endswith(".parquet"):
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    return [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]


@functools.cache
def round_as_kernels() -> None:
    """Has compressed-tensors round activations by steps of a 127th of the largest magnitude, from now on; once."""
    from compressed_tensors.quantization.lifecycle import forward

    original = forward.compute_dynamic_scales_and_zp

    def of_kernels(value, args, *more, **named):
        scale, zero_point = original(value, args, *more, **named)
        if (args.num_bits, args.type, args.symmetric) != (8, "int", True):
            raise NotImplementedError(f"activations of {args}")
        return scale * (127.5 / 127), zero_point

    forward.compute_dynamic_scales_and_zp = of_kernels


def run_harness(args: argparse.Namespace, files: dict[str, dict[str, list[str]]]) -> tuple:
    """Its results on files, which each task has for its splits; its model, the seconds of evaluating, and those with loading
    the model."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    manager = TaskManager()
    config = json.loads((Path(args.model) / "config.json").read_text())
    if config.get("quantization_config", {}).get("quant_method") == "compressed-tensors":
        round_as_kernels()
    start = time.monotonic()
    model = HFLM(pretrained=str(args.model), dtype=args.dtype, device=args.device, batch_size=args.batch_size)
    with tempfile.TemporaryDirectory() as folder:

        def of_files(name: str) -> dict:
            """The harness's own task, its data set files of ours."""
            config = load_yaml(manager.task_index[name].yaml_path)
            here = {}
            for split, paths in files[name].items():
                rows = [row for path in paths for row in rows_of(path)]
                if name.startswith("mmlu_"):
                    rows = [row for row in rows if row["subject"] == config["dataset_name"]]
                path = Path(folder) / f"{name}.{split}.jsonl"
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
                here[split] = str(path)
            data = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": here}}
            # Without examples nobody has their split.
            named = ("training_split", "validation_split", "test_split", "fewshot_split")
            splits = {key: config[key] if config.get(key) in here else None for key in named}
            return {**config, **data, **splits}

        tasks = manager.load([of_files(name) for name in args.tasks])
        for task in tasks["tasks"].values():
            # As the harness's command does.
            task.set_config(key="num_fewshot", value=args.fewshot)
            task.set_fewshot_seed(seed=1234)
        scoring = time.monotonic()
        results = evaluator.evaluate(
            lm=model,
            task_dict=tasks,
            limit=args.limit,
            log_samples=True,
            apply_chat_template=args.chat_template,
            fewshot_as_multiturn=args.chat_template and args.multiturn,
            system_instruction=args.system_instruction,
        )
    return results, model, time.monotonic() - scoring, time.monotonic() - start


def group_of(results: dict, names: list[str]) -> dict:
    """The harness's figure for a group of tasks."""
    from lm_eval.api.metrics import aggregate_subtask_metrics, pooled_sample_stderr

    found = [results["results"][name] for name in names]
    sizes = [len(results["samples"][name]) for name in names]
    mean = aggregate_subtask_metrics([one["acc,none"] for one in found], sizes)
    return {"mean": float(mean), "standard_error": float(pooled_sample_stderr([one["acc_stderr,none"] for one in found], sizes))}


def by_length(sample: dict, loglikelihoods: list[float]) -> list[float]:
    """Log-likelihoods for each character of a choice: what follows the delimiter, if there is one."""
    lengths = [max(len(continuation.removeprefix(" ")), 1) for _, continuation in arguments(sample)]
    return [value / length for value, length in zip(loglikelihoods, lengths, strict=True)]


def arguments(sample: dict) -> list[tuple[str, str]]:
    """Context and continuation of each request."""
    return [tuple(pair) for pair in sample["arguments"]]


def main() -> None:
    args = parse_args()
    report, answers, seconds_qqq = run_qqq(args)
    args.tasks = [task["task"] for task in report["tasks"]]
    files: dict[str, dict[str, list[str]]] = {name: {} for name in args.tasks}
    for task in report["tasks"]:
        for one in task["files"]:
            files[task["task"]].setdefault(one["split"], []).append(one["file"])
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
            right = {"acc": own["right"]}
            if own.get("choice_norm") is not None:
                right["acc_norm"] = own["choice_norm"] == own["target"]
            for metric, mine in right.items():
                if bool(sample[metric]) != mine:
                    # By character, log-likelihoods are closer to each other; answers have one at least.
                    close = sorted(theirs if metric == "acc" else by_length(sample, theirs))
                    tie = len(close) > 1 and close[-1] - close[-2] <= 2 * allowed
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
            # Of a single question the harness has none.
            error = error if isinstance(error, float) else 0.0
            row += [f"{100 * mean:.2f} ± {100 * (spread or 0):.2f}" for mean, spread in figures]
            if abs(error - (mine["standard_error"] or 0)) > 1e-9 and abs(theirs - mine["mean"]) < 1e-12:
                failed = True
                notes.append(f"{name}: the standard errors of {metric} differ: {error} and {mine['standard_error']}")
        print(f"| {' | '.join([*row, f'{largest:.1e}'])} |")
        if (mine := task.get("perplexity")) is not None:
            theirs, error = (results["results"][name][f"perplexity{which},none"] for which in ("", "_stderr"))
            print(f"\n{name}: perplexity {theirs:.6f} ± {error:.6f}, qqq {mine['mean']:.6f} ± {mine['standard_error']:.6f}\n")
            # Draws are the same; what is drawn differs by rounding.
            if any(abs(a - b) > 1e-3 * abs(b) for a, b in ((theirs, mine["mean"]), (error, mine["standard_error"]))):
                failed = True
                notes.append(f"{name}: the perplexities differ")
    for group in report.get("groups", []):
        members = [t["task"] for t in report["tasks"] if f"{t.get('group')}_".startswith(group["group"] + "_")]
        theirs, mine = group_of(results, members), group["acc"]
        print(f"\n{group['group']}: {theirs}, qqq {mine}")
        if any(abs(theirs[key] - mine[key]) > 1e-9 for key in theirs):
            failed = True
            notes.append(f"{group['group']}: the figures differ")
    print("\n".join(["", *notes]) if notes else "\nNo question differs.")
    print(f"\nSeconds of scoring: harness {scoring:.1f}, qqq {report['seconds']:.1f}")
    print(f"Seconds in all, models loaded: harness {seconds_harness:.1f}, qqq {seconds_qqq:.1f}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
