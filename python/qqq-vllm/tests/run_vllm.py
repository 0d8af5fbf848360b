"""Runs a model in vLLM, in a process of its own: reads a request (JSON) from standard input, writes what came out to a file.

Request: `engine` (arguments of vllm.LLM), `prompts` (lists of token ids), `max_tokens`, `windows` (lists of token ids whose
log-likelihood is wanted), `output`.
"""

import json
import math
import os
import sys


def main() -> None:
    request = json.load(sys.stdin)
    from vllm import LLM, SamplingParams

    llm = LLM(**request["engine"])
    prompts = [{"prompt_token_ids": p} for p in request["prompts"]]
    greedy = SamplingParams(temperature=0, max_tokens=request["max_tokens"], logprobs=5, ignore_eos=True)
    answers = []
    for out in llm.generate(prompts, greedy) if prompts else []:
        one = out.outputs[0]
        top = [{str(t): p.logprob for t, p in step.items()} for step in one.logprobs]
        answers.append({"tokens": list(one.token_ids), "top": top})
    scoring = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    windows = [{"prompt_token_ids": w} for w in request["windows"]]
    logprobs = []
    for out in llm.generate(windows, scoring) if windows else []:
        for token, step in list(zip(out.prompt_token_ids, out.prompt_logprobs))[1:]:
            logprobs.append(step[token].logprob)
    perplexity = math.exp(-sum(logprobs) / len(logprobs)) if logprobs else None
    result = {"answers": answers, "logprobs": logprobs, "perplexity": perplexity}
    with open(request["output"], "w") as file:
        json.dump(result, file)
    llm.llm_engine.engine_core.shutdown()
    if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") != "0":
        # The engine was in other processes, with all weights. vLLM leaves threads of this one to the end of the interpreter,
        # where it was aborted in two of some thirty runs (by C++'s terminate, all being done; not seen in thirty more to find
        # out by whom). Where the engine is in this process, it must end well.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
