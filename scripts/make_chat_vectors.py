#!/usr/bin/env python3
"""Makes crates/qqq-model/tests/data/chat/expected.json: conversations rendered by transformers'
`apply_chat_template` with every template beside it (pip install transformers jinja2)."""

import json
from pathlib import Path

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


def main():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(CHAT.parent / "byte_level/tokenizer.json"), bos_token="<s>", eos_token="</s>"
    )
    cases = []
    for path in sorted(CHAT.glob("*.jinja")):
        template = path.read_bytes().decode()
        for messages in CONVERSATIONS:
            for prompt in (False, True):
                case = {"template": path.name, "messages": messages, "add_generation_prompt": prompt}
                try:
                    case["text"] = tokenizer.apply_chat_template(
                        messages, chat_template=template, tokenize=False, add_generation_prompt=prompt
                    )
                except Exception as e:  # raise_exception
                    case["error"] = str(e)
                cases.append(case)
    lines = [json.dumps(case, ensure_ascii=False) for case in cases]
    (CHAT / "expected.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(len(cases), "cases,", sum("error" in c for c in cases), "errors")


main()
