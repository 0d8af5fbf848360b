#!/usr/bin/env python3
"""Compares chat templates between transformers and ours, by hand: each FILE is a template (a directory stands for
all files in it; without any, the snippets of chat_snippets.py are compared), rendered with several conversations.

    python3 scripts/compare_chat_templates.py ~/templates/*.jinja     (pip install transformers jinja2)
"""

import copy
import json
import subprocess
import sys
from pathlib import Path

from chat_snippets import CALLS, CONVERSATION, SNIPPETS, TOOLS, D, W
from transformers.utils.chat_template_utils import _normalize_chat_messages, render_jinja_template

ROOT = Path(__file__).parent.parent
OURS = ["cargo", "run", "-q", "-p", "qqq-model", "--example", "render_chat_template"]
PLAIN = copy.deepcopy(CALLS)
PLAIN[0]["content"] = "Weather?"
PLAIN[1]["content"] = "I look."
CONVERSATIONS = {
    "talk": (CONVERSATION, {}),
    "no system": (CONVERSATION[1:], {}),
    "one": (CONVERSATION[1:2], {}),
    "no thinking": (CONVERSATION[1:2], {"enable_thinking": False}),
    "offered tools": (CONVERSATION, {"tools": TOOLS}),
    "called tools": (CALLS, {"tools": TOOLS}),
    "called tools, texts": (PLAIN, {"tools": TOOLS}),
}


def theirs(case):
    variables = dict(case["variables"])
    try:
        return {
            "text": render_jinja_template(
                conversations=[_normalize_chat_messages(case["messages"])],
                chat_template=case["template"],
                tools=variables.pop("tools", None),
                add_generation_prompt=case["add_generation_prompt"],
                bos_token="<s>",
                eos_token="</s>",
                **variables,
            )[0][0]
        }
    except Exception as e:
        return {"error": f"{type(e).__name__}: {e}"}


def main(paths):
    cases = []
    files = [f for p in map(Path, paths) for f in (sorted(p.iterdir()) if p.is_dir() else [p])]
    for file in files:
        for name, (messages, variables) in CONVERSATIONS.items():
            for prompt in (False, True):
                cases.append(
                    {
                        "name": f"{file.name}, {name}",
                        "template": file.read_bytes().decode(),
                        "messages": messages,
                        "add_generation_prompt": prompt,
                        "variables": variables,
                    }
                )
    if not files:
        for subject, templates in SNIPPETS.items():
            cases += [
                {
                    "name": subject,
                    "template": t,
                    "messages": CONVERSATION,
                    "add_generation_prompt": False,
                    "variables": {**D, **W, "tools": TOOLS},
                }
                for t in templates
            ]
    run = subprocess.run(OURS, input=json.dumps(cases), capture_output=True, text=True, check=True, cwd=ROOT)
    different, errors = 0, 0
    for case, ours in zip(cases, json.loads(run.stdout), strict=True):
        expected = theirs(case)
        errors += "error" in expected and "error" in ours
        if ("error" in expected) != ("error" in ours) or expected.get("text") != ours.get("text"):
            different += 1
            what = case["template"] if not files else ""
            print(f"{case['name']} {what}\n  transformers {expected}\n  ours         {ours}")
    print(f"{len(cases)} cases, {different} differ, {errors} are errors in both")
    return different > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
