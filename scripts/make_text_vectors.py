"""Makes crates/qqq-model/tests/data/texts.json: files of every kind that the text reader takes, and their texts as Python reads them.

Needs transformers, pandas, pyarrow and datasets: json, gzip, pandas and pyarrow give the records, transformers' apply_chat_template the
text of messages. How records become one text is GPTQ's way: joined by blank lines.
"""

import gzip
import io
import json
import pathlib

import datasets.arrow_writer
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% if tools %}<|tools|>{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m.tool_calls %}{% for call in m.tool_calls %}"
    "{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}{% else %}{{ m['content'] }}{% endif %}{% if not loop.last %}\n{% endif %}{% endfor %}{{ eos_token }}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>", bos_token="<s>")
tokenizer.chat_template = TEMPLATE

DOCS = ["First, with \"quotes\" and a \\ backslash.", "Zweiter: Grüße, 日本語, 🙂.\nTwo lines.", "", " third \t"]
PAIRS = [("Why?", "Because of {braces}."), ("Was heißt das?\n[1]", "Nichts.")]
CHATS = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in PAIRS]
SYSTEM = {"role": "system", "content": "Be brief."}


def chat(messages, tools=None):
    return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)


def lines(records, **options):
    return "\n".join(json.dumps(r, **options) for r in records).encode()


def parquet(table, **options):
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def arrow(table, rows=None, **options):
    """With an index at its end."""
    out = io.BytesIO()
    with pa.ipc.new_file(out, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, rows)
    return out.getvalue()


def cached(records):
    """As the datasets library keeps them: a stream."""
    out = pa.BufferOutputStream()
    writer = datasets.arrow_writer.ArrowWriter(stream=out, writer_batch_size=3)
    for record in records:
        writer.write(record)
    writer.finalize()
    return out.getvalue().to_pybytes()


def zstd(data):
    return pa.compress(data, codec="zstd", asbytes=True)


def alpaca(instruction, input, output):
    """The prompts of github.com/tatsu-lab/stanford_alpaca, as its data set's column "text" has them."""
    if input:
        return (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n{output}"
        )
    return (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{instruction}\n\n### Response:\n{output}"
    )


CASES = []


def case(name, data, texts, template=True, field=None):
    CASES.append(
        {"name": name, "hex": data.hex(), "template": template, "field": field, "text": texts if isinstance(texts, str) else "\n\n".join(texts)}
    )


plain = "\n\n".join(DOCS) + "\r\nLast line [1] {x}\n"
for codec, bom in [("utf-8", b""), ("utf-8-sig", b""), ("utf-16", b""), ("utf-16-be", b"\xfe\xff"), ("utf-16-le", b"\xff\xfe")]:
    case(f"{codec}.txt", bom + plain.encode(codec), plain)
case("plain.txt.gz", gzip.compress(plain.encode(), mtime=0), plain)
case("plain.zst", zstd(plain.encode()), plain)
case("utf16.gz", gzip.compress(plain.encode("utf-16"), mtime=0), plain)
long = "".join(f"{i} größer 🙂\n" for i in range(3600))
case("blocks.txt.gz", gzip.compress(long.encode("utf-16"), mtime=0), long)

texts = [{"text": d, "id": i} for i, d in enumerate(DOCS)]
case("lines.jsonl", lines(texts), DOCS)
case("lines-named-txt.txt", lines(texts, ensure_ascii=False), DOCS)
case("lines-crlf-bom.jsonl", "\r\n\r\n".join(json.dumps(t) for t in texts).encode("utf-8-sig"), DOCS)
case("lines-utf16.jsonl", "\n".join(json.dumps(t, ensure_ascii=False) for t in texts).encode("utf-16"), DOCS)
case("lines.jsonl.gz", gzip.compress(lines(texts), mtime=0), DOCS)
case("strings.jsonl", lines(DOCS), DOCS)
case("array.json", json.dumps(texts).encode(), DOCS)
case("array-indented.json", json.dumps(texts, indent=2, ensure_ascii=False).encode(), DOCS)
case("array-of-strings", json.dumps(DOCS).encode(), DOCS)
case("array-named-txt.txt", ("\n\n" + json.dumps(texts) + "\n").encode(), DOCS)
case("objects-indented.json", "\n".join(json.dumps(t, indent=1) for t in texts).encode(), DOCS)
frame = pd.DataFrame({"text": DOCS[:2] + [None] + DOCS[2:]})
case("null.jsonl", frame.to_json(orient="records", lines=True).encode(), list(frame["text"].dropna()))
case("records.json", frame.to_json(orient="records").encode(), list(frame["text"].dropna()))
case("content.jsonl", lines({"content": d, "title": "T"} for d in DOCS), DOCS)
case("field.jsonl", lines({"text": "no", "body": d} for d in DOCS), DOCS, field="body")

messages = [{"messages": c} for c in CHATS]
case("messages.jsonl", lines(messages), [chat(c) for c in CHATS])
case("messages.json", json.dumps(messages, indent=4).encode(), [chat(c) for c in CHATS])
mixed = [{"text": "Plain."}, {"messages": [SYSTEM] + CHATS[1]}]
case("mixed.jsonl", lines(mixed), ["Plain.", chat([SYSTEM] + CHATS[1])])
case("field-of-messages.jsonl", lines({"text": "no", "turns": c} for c in CHATS), [chat(c) for c in CHATS], field="turns")
parts = [[{"role": "user", "content": [{"type": "text", "text": q}]}, {"role": "assistant", "content": a}] for q, a in PAIRS]
case("parts.jsonl", lines({"messages": p} for p in parts), [chat(c) for c in CHATS])
sharegpt = [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in PAIRS]
case("sharegpt.jsonl", lines(sharegpt), [chat(c) for c in CHATS])
sharegpt = [{"system": "Be brief.", **c} for c in sharegpt]
case("sharegpt-system.json", json.dumps(sharegpt).encode(), [chat([SYSTEM] + c) for c in CHATS])
tool = [{"role": "user", "content": "Weather?"}, {"role": "tool", "content": "{\"t\": 7}"}, {"role": "assistant", "content": "7 °C"}]
observed = [{"from": "human", "value": "Weather?"}, {"from": "observation", "value": "{\"t\": 7}"}, {"from": "gpt", "value": "7 °C"}]
case("tool-result.jsonl", lines([{"messages": tool}, {"conversations": observed}]), [chat(tool), chat(tool)])
call = {"name": "weather", "arguments": {"place": "Köln", "days": [1, 2]}}
calling = [tool[0], {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]}, *tool[1:]]
called = [observed[0], {"from": "function_call", "value": json.dumps(call)}, *observed[1:]]
case("tool-calls.jsonl", lines([{"messages": calling}, {"conversations": called}]), [chat(calling), chat(calling)])
del calling[1]["content"]
case("tool-calls-only.json", json.dumps([{"messages": calling}]).encode(), [chat(calling)])
tools = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}}}]
defined = [{"messages": calling, "tools": tools}, {"messages": calling, "tools": json.dumps(tools)}, {"messages": tool, "tools": []}]
case("tools.jsonl", lines(defined), [chat(calling, tools), chat(calling, tools), chat(tool)])

inputs = ["", "a, b"]
alpacas = [{"instruction": q, "input": i, "output": a} for (q, a), i in zip(PAIRS, inputs)]
asked = [chat([{"role": "user", "content": f"{q}\n{i}" if i else q}, {"role": "assistant", "content": a}]) for (q, a), i in zip(PAIRS, inputs)]
case("alpaca.json", json.dumps(alpacas, indent=2).encode(), asked)
case("alpaca-plain.json", json.dumps(alpacas).encode(), [alpaca(**r) for r in alpacas], template=False)
dolly = [{"instruction": q, "context": i, "response": a, "category": "qa"} for (q, a), i in zip(PAIRS, inputs)]
case("dolly.jsonl", lines(dolly), asked)
turns = [{"instruction": "And?", "output": "No.", "history": [["Yes?", "Yes."]], "system": "Be brief."}]
said = [SYSTEM, *[{"role": r, "content": c} for r, c in [("user", "Yes?"), ("assistant", "Yes."), ("user", "And?"), ("assistant", "No.")]]]
case("history.jsonl", lines(turns), [chat(said)])
case("completion.jsonl", lines({"prompt": q, "completion": a} for q, a in PAIRS), [q + a for q, a in PAIRS])
case("completion-chat.jsonl", lines({"prompt": c[:1], "completion": c[1:]} for c in CHATS), [chat(c) for c in CHATS])

docs = [None, *DOCS]
kept = list(pq.read_table(io.BytesIO(parquet(pa.table({"text": docs})))).to_pandas()["text"].dropna())
case("texts.parquet", parquet(pa.table({"n": list(range(5)), "text": docs})), kept)
case("parquet-without-its-name", parquet(pa.table({"text": pa.array(docs, pa.large_string())}), compression="zstd"), kept)
case("bytes.parquet", parquet(pa.table({"text": pa.array([d.encode() for d in DOCS], pa.binary())}), compression="gzip"), DOCS)
case("content.parquet", parquet(pa.table({"content": DOCS}), compression="lz4"), DOCS)
case("field.parquet", parquet(pa.table({"text": ["no"] * 4, "body": DOCS})), DOCS, field="body")
rows = pq.read_table(io.BytesIO(parquet(pa.table({"messages": CHATS})))).to_pylist()
case("messages.parquet", parquet(pa.table({"messages": CHATS})), [chat(r["messages"]) for r in rows])
case("alpaca.parquet", parquet(pa.Table.from_pylist(alpacas)), asked)
case("sharegpt.parquet", parquet(pa.Table.from_pylist(sharegpt)), [chat([SYSTEM] + c) for c in CHATS])
groups = pa.table({"text": [f"row {i}" for i in range(50)]})
case("row-groups.parquet", parquet(groups, row_group_size=7), [f"row {i}" for i in range(50)])

case("cached.arrow", cached({"n": i, "text": text} for i, text in enumerate(docs)), kept)
case("cached-messages.arrow", cached(messages), [chat(c) for c in CHATS])
case("cached-field.arrow", cached({"text": "no", "body": d} for d in DOCS), DOCS, field="body")
case("texts.feather", arrow(pa.table({"text": pa.array(docs, pa.large_string())}), compression="lz4"), kept)
case("arrow-without-its-name", arrow(groups, 7, compression="zstd"), [f"row {i}" for i in range(50)])
case("dictionary.arrow", arrow(pa.table({"text": pa.array(docs).dictionary_encode()})), kept)
case("view.arrow", arrow(pa.table({"text": pa.array(docs, pa.string_view())})), kept)
many = [f"row {i}" for i in range(2500)]
case("one-batch.arrow", arrow(pa.table({"text": many}), compression="zstd"), many)

path = pathlib.Path(__file__).parents[1] / "crates/qqq-model/tests/data/texts.json"
with open(path, "w", encoding="utf-8") as file:
    json.dump({"template": TEMPLATE, "cases": CASES}, file, ensure_ascii=False, indent=1)
    file.write("\n")
print(len(CASES), path.stat().st_size)
