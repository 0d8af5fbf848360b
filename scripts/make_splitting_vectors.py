#!/usr/bin/env python3
"""Makes crates/qqq-model/tests/data/splittings.json: byte-level vocabularies that `tokenizers` trains on corpus.txt with
splittings that GGUF files name (`tokenizer.ggml.pre`), and its ids of texts. For names that say the same as another one, the
ids come from the regular expressions that llama.cpp has for them (src/llama-vocab.cpp), with one vocabulary that was made
without any splitting: its tokens reach over all that a splitting cuts.

pip install tokenizers"""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

DATA = Path(__file__).parent.parent / "crates/qqq-model/tests/data"
CORPUS = (DATA / "corpus.txt").read_bytes().decode()
# More of what splittings differ in than corpus.txt has.
MORE = (
    "In 2024 there were 1234567 of 100 kinds, 42 of them (see fooBar.baz) new; x = 3.14159;\n\n"
    "    def getElementById(self, index):\n        return self.items[index]  # don't\n\n\n"
    "https://example.org/a/b\n\t- it's 10% of 2000, 2001, 2002 and 1999\n  \n"
) * 3
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(regex):
    parts = [pre_tokenizers.Split(Regex(regex), behavior="isolated"), byte_level(False)]
    return pre_tokenizers.Sequence(parts)


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


SPLITTINGS = {
    "gpt-2": byte_level(True),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True)]),
    "llama-bpe": split(LLAMA3),
    "qwen2": split(LLAMA3.replace("{1,3}", "")),
    "tekken": split(TEKKEN),
}


# What llama.cpp splits by, one expression after the other. "gpt-4o" has cases in ASCII alone, where the model's own expression
# goes by Unicode's.
ENDINGS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
CL100K = (
    rf"{ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CASE = r"(?=[\p{L}])([^a-z])", r"(?=[\p{L}])([^A-Z])"
NAMED = {
    "smaug-bpe": [CL100K],
    "dbrx": [CL100K],
    "gpt-4o": [
        rf"[^\r\n\p{{L}}\p{{N}}]?({CASE[0]})*({CASE[1]})+{ENDINGS}?|[^\r\n\p{{L}}\p{{N}}]?({CASE[0]})+({CASE[1]})*{ENDINGS}?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "refact": [r"\p{N}", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"],
}


def named():
    """Tokens and merges of a vocabulary without splitting, a text, and its ids by name."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = byte_level(False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
    t.train_from_iterator([CORPUS + MORE], trainer)
    model = json.loads(t.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    # Cases beyond ASCII are left out.
    lines = (CORPUS + MORE[: len(MORE) // 3]).splitlines(keepends=True)
    text = "".join(line for line in lines if all(c.isascii() or c.lower() == c.upper() for c in line))
    ids = {}
    for name, expressions in NAMED.items():
        parts = [pre_tokenizers.Split(Regex(e), behavior="isolated") for e in expressions]
        t.pre_tokenizer = pre_tokenizers.Sequence([*parts, byte_level(False)])
        ids[name] = t.encode(text).ids
    assert len({str(i) for i in ids.values()}) == 3, "two of them say the same"
    return {"tokens": tokens, "merges": [" ".join(m) for m in model["merges"]], "text": text, "ids": ids}


def main():
    out = []
    for name, splitting in SPLITTINGS.items():
        t = Tokenizer(models.BPE(ignore_merges=name in ("llama-bpe", "tekken")))
        t.pre_tokenizer = splitting
        if name == "qwen2":
            t.normalizer = normalizers.NFC()
        t.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
        t.train_from_iterator([CORPUS, MORE] * 3, trainer)
        model = json.loads(t.to_str())["model"]
        tokens = sorted(model["vocab"], key=model["vocab"].get)
        merges = [" ".join(m) for m in model["merges"]]
        out.append({"pre": name, "tokens": tokens, "merges": merges, "ids": t.encode(CORPUS + MORE[: len(MORE) // 3]).ids})
    text = {"text": CORPUS + MORE[: len(MORE) // 3], "vocabularies": out, "named": named()}
    (DATA / "splittings.json").write_text(json.dumps(text, ensure_ascii=False, separators=(",", ":")) + "\n")


main()
