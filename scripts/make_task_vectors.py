#!/usr/bin/env python3
"""Writes what lm-evaluation-harness makes of the questions in crates/qqq-eval/tests/questions, for the tests there: contexts
and continuations, their tokens, the log-likelihoods of a model, and whether its choices count; zero-shot, with examples, and
in the model's chat template. A subject's questions also become parquet files, and those of piqa an Arrow file.

    pip install lm_eval==0.4.13 torch transformers
    qqq quantize SmolLM2-135M-Instruct.gguf -o FLOAT --recipe fp16
    scripts/make_task_vectors.py FLOAT
"""

import argparse
import json
from pathlib import Path

from compare_lm_eval import TASKS, arguments, group_of, rows_of, run_harness

QUESTIONS = Path(__file__).parent.parent / "crates/qqq-eval/tests/questions"
MMLU = ["mmlu_anatomy", "mmlu_philosophy"]
SHOTS = ["piqa", "arc_easy", "hellaswag", "winogrande", "lambada_openai", *MMLU]
# Name, tasks, and what is asked of the harness.
RUNS = [
    ("zero-shot", [*TASKS, "lambada_openai", *MMLU], {}),
    ("few-shot", SHOTS, {"fewshot": 2}),
    ("chat", ["piqa", "winogrande", "lambada_openai", "mmlu_anatomy"], {"chat_template": True}),
    ("few-shot turns", SHOTS, {"fewshot": 2, "chat_template": True, "system_instruction": "Be brief."}),
    ("few-shot in one turn", SHOTS, {"fewshot": 1, "chat_template": True, "multiturn": False}),
    ("system text", ["piqa", "mmlu_anatomy"], {"system_instruction": "Be brief."}),
]


def files_of(name: str, fewshot: int) -> dict[str, list[str]]:
    """Our questions and examples of a task, by split."""
    if name.startswith("mmlu_"):
        names = {"test": "mmlu.test", "dev": "mmlu.dev"}
    elif name == "lambada_openai":
        names = {"test": "lambada"}
    else:
        split = "test" if name.startswith("arc") else "validation"
        names = {split: name} | ({"train": f"{name}.train"} if fewshot else {})
    return {split: [str(QUESTIONS / f"{name}.jsonl")] for split, name in names.items()}


def vectors_of(results: dict, model, name: str) -> list[dict]:
    """Of each document what was asked and found."""
    documents = []
    for sample in sorted(results["samples"][name], key=lambda sample: sample["doc_id"]):
        requests = []
        for (context, continuation), (loglikelihood, _) in zip(arguments(sample), sample["filtered_resps"], strict=True):
            before, after = model._encode_pair(context, continuation)
            requests.append(
                {
                    "context": context,
                    "continuation": continuation,
                    "tokens": before + after,
                    "scored": len(after),
                    "loglikelihood": round(float(loglikelihood), 5),
                }
            )
        metrics = {metric: sample[metric] for metric in ("acc", "acc_norm") if metric in sample}
        documents.append({"requests": requests, **metrics})
    return documents


def write_parquet() -> None:
    """A subject as the hub has it: a folder, with a split in two files and its examples in one."""
    import pyarrow
    import pyarrow.parquet

    for split, parts in (("test", 2), ("dev", 1)):
        rows = [row for row in rows_of(str(QUESTIONS / f"mmlu.{split}.jsonl")) if row["subject"] == "anatomy"]
        for part in range(parts):
            path = QUESTIONS / f"anatomy/{split}-{part:05}-of-{parts:05}.parquet"
            path.parent.mkdir(exist_ok=True)
            own = rows[part * len(rows) // parts : (part + 1) * len(rows) // parts]
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(own), path)


def write_arrow() -> None:
    """As the datasets library keeps what it has read of JSON lines."""
    import datasets.arrow_writer

    writer = datasets.arrow_writer.ArrowWriter(path=str(QUESTIONS / "piqa.arrow"))
    for row in rows_of(str(QUESTIONS / "piqa.jsonl")):
        writer.write(row)
    writer.finalize()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", type=Path, help="a directory that transformers reads")
    given = parser.parse_args()
    write_parquet()
    write_arrow()
    common = {"limit": None, "device": "cpu", "dtype": "float32", "batch_size": "1"}
    written = []
    for title, tasks, asked in RUNS:
        asked = {"fewshot": 0, "chat_template": False, "multiturn": True, "system_instruction": None} | asked
        args = argparse.Namespace(model=given.model, tasks=tasks, **asked, **common)
        results, model, *_ = run_harness(args, {name: files_of(name, args.fewshot) for name in tasks})
        run = {"title": title, **asked, "mmlu": group_of(results, MMLU) if set(MMLU) <= set(tasks) else None}
        run["perplexity"] = {
            name: [results["results"][name][f"perplexity{which},none"] for which in ("", "_stderr")]
            for name in tasks
            if "perplexity,none" in results["results"][name]
        }
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in run.items()]
        documents = [
            f"    {json.dumps(name)}: [\n      "
            + ",\n      ".join(json.dumps(document) for document in vectors_of(results, model, name))
            + "]"
            for name in tasks
        ]
        lines.append('  "tasks": {\n' + ",\n".join(documents) + "}")
        written.append(" {\n" + ",\n".join(lines) + "}")
    (QUESTIONS / "lm_eval.json").write_text("[\n" + ",\n".join(written) + "]\n")


if __name__ == "__main__":
    main()
