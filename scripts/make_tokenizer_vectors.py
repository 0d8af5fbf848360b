#!/usr/bin/env python3
"""Makes the test data of qqq-model's tokenizers, in crates/qqq-model/tests/data:

smollm2_ids.json       ids of every line of corpus.txt, and of all of it, by llama.cpp on SmolLM2's vocabulary
byte_level/            a small byte-level BPE tokenizer (as Llama 3's), its ids by `tokenizers`, and
byte_level.gguf        the same vocabulary as a GGUF file
pre_ids.json           ids of corpus.txt by llama.cpp with other pre-tokenizers on that vocabulary
sentence_piece/, .gguf a small SentencePiece-style BPE tokenizer with byte fallback (as Llama 2's)

pip install gguf llama-cpp-python tokenizers; argument: SmolLM2-135M-Instruct.Q4_1.gguf"""

import json
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import gguf
from llama_cpp import Llama
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

DATA = Path(__file__).parent.parent / "crates/qqq-model/tests/data"
CORPUS = (DATA / "corpus.txt").read_bytes().decode()
# Texts to encode: every line with its end, and everything.
TEXTS = CORPUS.splitlines(keepends=True) + [CORPUS, " ", "  ", "\n\n", "a", " a", ""]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE = ["default", "gpt-2", "smollm", "qwen2", "tekken"]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"


def texts_and_ids(encode):
    lines = [json.dumps({"text": t, "ids": encode(t)}, ensure_ascii=False) for t in TEXTS]
    return "[\n" + ",\n".join(lines) + "\n]"


def llama_cpp(path):
    model = Llama(str(path), vocab_only=True, verbose=False)
    return lambda text: model.tokenize(text.encode(), add_bos=False, special=True)


def write_gguf(path, kind, tokens, types, **more):
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(1)
    w.add_context_length(128)
    w.add_embedding_length(8)
    w.add_feed_forward_length(16)
    w.add_head_count(2)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_tokenizer_model(kind)
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_bos_token_id(tokens.index("<s>"))
    w.add_eos_token_id(tokens.index("</s>"))
    w.add_chat_template(TEMPLATE)
    if "merges" in more:
        w.add_token_merges([" ".join(m) for m in more["merges"]])
        w.add_tokenizer_pre(more["pre"])
    else:
        w.add_token_scores(more["scores"])
        w.add_unk_token_id(tokens.index("<unk>"))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def save(name, tokenizer, config):
    folder = DATA / name
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    plain = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    (folder / "ids.json").write_text(texts_and_ids(plain) + "\n")
    return plain


def byte_level():
    t = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated")
    t.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    t.train_from_iterator([CORPUS] * 3, trainer)
    control = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"]
    t.add_special_tokens([AddedToken(c, special=True, normalized=False) for c in control])
    t.add_tokens([AddedToken("[INST]", special=False, normalized=False)])
    t.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", t.token_to_id("<s>"))]
    )
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}, "chat_template": TEMPLATE}
    plain = save("byte_level", t, config)
    vocab = t.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    kinds = {**{c: CONTROL for c in control}, "[INST]": USER_DEFINED}
    merges = json.loads(t.to_str())["model"]["merges"]
    path = DATA / "byte_level.gguf"
    write_gguf(path, "gpt2", tokens, [kinds.get(x, NORMAL) for x in tokens], merges=merges, pre="llama-bpe")
    other = {}
    for pre in PRE:
        temporary = DATA / "other.gguf"
        write_gguf(temporary, "gpt2", tokens, [kinds.get(x, NORMAL) for x in tokens], merges=merges, pre=pre)
        # llama.cpp leaves out the NFC normalization of Qwen's tokenizer.json.
        text = unicodedata.normalize("NFC", CORPUS) if pre == "qwen2" else CORPUS
        other[pre] = llama_cpp(temporary)(text)
        temporary.unlink()
    (DATA / "pre_ids.json").write_text(json.dumps(other) + "\n")
    check = llama_cpp(path)
    return [x for x in TEXTS if plain(x) != check(x)]


def sentence_piece():
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # Pieces do not cross words while training; encoding has no pre-tokenizer.
    t.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    first = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    count = Counter(CORPUS.replace(" ", "▁"))
    alphabet = sorted(count, key=lambda c: (-count[c], c))[:90]
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=first, initial_alphabet=alphabet, limit_alphabet=90, show_progress=False
    )
    t.train_from_iterator([CORPUS] * 3, trainer)
    trained = json.loads(t.to_str())["model"]["vocab"]
    pieces = [x for x in sorted(trained, key=trained.get) if x not in first]
    # SentencePiece's order: bytes, merged pieces by falling score, single characters.
    merged = [x for x in pieces if len(x) > 1]
    tokens = first + merged + [x for x in pieces if len(x) == 1]
    vocab = {x: i for i, x in enumerate(tokens)}
    scores = [0.0] * len(first) + [-float(i) for i in range(len(tokens) - len(first))]
    score = dict(zip(tokens, scores))
    # As SentencePiece merges: every way to make a piece, best score first.
    ways = [(x[:i], x[i:]) for x in merged for i in range(1, len(x)) if x[:i] in vocab and x[i:] in vocab]
    ways.sort(key=lambda w: (score[w[0] + w[1]], len(w[0]), len(w[1])), reverse=True)
    model = models.BPE(vocab=vocab, merges=ways, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    out = Tokenizer(model)
    out.normalizer = t.normalizer
    out.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    out.add_special_tokens([AddedToken(c, special=True, normalized=False) for c in first[:3]])
    out.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", out.token_to_id("<s>"))]
    )
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    plain = save("sentence_piece", out, config)
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(tokens) - 259)
    path = DATA / "sentence_piece.gguf"
    write_gguf(path, "llama", tokens, types, scores=scores)
    check = llama_cpp(path)
    return [x for x in TEXTS if plain(x) != check(x)]


def main():
    (DATA / "smollm2_ids.json").write_text(texts_and_ids(llama_cpp(sys.argv[1])) + "\n")
    for kind in byte_level, sentence_piece:
        print(kind.__name__, "texts where tokenizers and llama.cpp differ:", kind())


main()
