#!/usr/bin/env python3
"""Writes what lm-evaluation-harness makes of the questions in crates/qqq-eval/tests/questions, for the tests there: contexts
and continuations, their tokens, the log-likelihoods of a model, and whether its choices count.

    pip install lm_eval==0.4.13 torch transformers
    qqq quantize SmolLM2-135M-Instruct.gguf -o FLOAT --recipe fp16
    scripts/make_task_vectors.py FLOAT
"""

import argparse
import json
from pathlib import Path

from compare_lm_eval import TASKS, arguments, run_harness

QUESTIONS = Path(__file__).parent.parent / "crates/qqq-eval/tests/questions"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", type=Path, help="a directory that transformers reads")
    given = parser.parse_args()
    args = argparse.Namespace(
        model=given.model, tasks=TASKS, limit=None, device="cpu", dtype="float32", batch_size="1"
    )
    results, model, *_ = run_harness(args, {name: str(QUESTIONS / f"{name}.jsonl") for name in TASKS})
    vectors = {}
    for name in TASKS:
        vectors[name] = []
        for sample in sorted(results["samples"][name], key=lambda sample: sample["doc_id"]):
            requests = []
            for (context, continuation), (loglikelihood, _) in zip(
                arguments(sample), sample["filtered_resps"], strict=True
            ):
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
            vectors[name].append({"requests": requests, **metrics})
    lines = [
        f"{json.dumps(name)}: [\n  " + ",\n  ".join(json.dumps(document) for document in documents) + "]"
        for name, documents in vectors.items()
    ]
    (QUESTIONS / "lm_eval.json").write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main()
