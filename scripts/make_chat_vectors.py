#!/usr/bin/env python3
"""Makes the vectors of crates/qqq-model/tests/data/chat with transformers (pip install transformers jinja2):
expected.json, conversations rendered with every template beside it, and snippets.json, the small templates of
chat_snippets.py. What is an error there has its text, for people: ours says it in other words."""

import json
import logging
from pathlib import Path

from chat_snippets import CALLS, CONVERSATION, D, SNIPPETS, TOOLS, UNSUPPORTED, W
from transformers import PreTrainedTokenizerFast

CHAT = Path(__file__).parent.parent / "crates/qqq-model/tests/data/chat"
ONE = [{"role": "user", "content": "Hello,  world!\n"}]
TALK = [
    {"role": "system", "content": "  Be brief & exact.  "},
    {"role": "user", "content": "What's 1 < 2?\tTell \"me\" — 世界 {{ not_a_tag }}"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nTrue."},
    {"role": "user", "content": "Why?"},
]
CONVERSATIONS = [ONE, TALK, TALK[1:], TALK[:3], TALK[1:3] + TALK[2:], [{"role": "tool", "content": "x"}]]


def write(name, cases):
    lines = [json.dumps(case, ensure_ascii=False) for case in cases]
    (CHAT / name).write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(name, len(cases), "cases,", sum("error" in c for c in cases), "errors")


def main():
    logging.disable()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(CHAT.parent / "byte_level/tokenizer.json"), bos_token="<s>", eos_token="</s>"
    )

    def render(case, template, messages, prompt, **variables):
        try:
            case["text"] = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=prompt, **variables
            )
        except Exception as e:  # raise_exception, and whatever Python raises
            case["error"] = str(e)
        return case

    cases = []
    for path in sorted(CHAT.glob("*.jinja")):
        template = path.read_bytes().decode()
        for messages in CONVERSATIONS:
            for prompt in (False, True):
                case = {"template": path.name, "messages": messages, "add_generation_prompt": prompt}
                cases.append(render(case, template, messages, prompt))
        for prompt in (False, True):
            case = {"template": path.name, "messages": CALLS, "add_generation_prompt": prompt, "tools": TOOLS}
            cases.append(render(case, template, CALLS, prompt, tools=TOOLS))
    write("expected.json", cases)

    variables = {**D, **W, "tools": TOOLS}
    snippets = []
    for subject, templates in SNIPPETS.items():
        for template in templates:
            case = render({"subject": subject, "template": template}, template, CONVERSATION, False, **variables)
            assert " at 0x" not in case.get("text", ""), template
            snippets.append(case)
    snippets += [{"subject": "unsupported", "template": t, "says": words} for t, words in UNSUPPORTED]
    write("snippets.json", snippets)
    variables.pop("tools")
    (CHAT / "variables.json").write_text(
        json.dumps({"messages": CONVERSATION, "tools": TOOLS, **variables}, ensure_ascii=False, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
