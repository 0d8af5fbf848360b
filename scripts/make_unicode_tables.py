#!/usr/bin/env python3
"""Makes crates/qqq-model/src/chat/python/tables.rs: what Python's str methods say of characters where Rust's
standard library has no answer, or another one. Python 3.11 (Unicode 14) made the committed file."""

import sys
import unicodedata
from pathlib import Path

OUT = Path(__file__).parent.parent / "crates/qqq-model/src/chat/python/tables.rs"
CHARS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def ranges(test):
    out = []
    for c in map(ord, filter(test, CHARS)):
        if out and out[-1][1] in (c - 1, 0xD7FF if c == 0xE000 else -1):
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def table(name, doc, rows, kind):
    text = ", ".join(rows)
    lines, line = [], "   "
    for row in rows:
        if len(line) + len(row) + 2 > 108:
            lines.append(line)
            line = "   "
        line += f" {row},"
    lines.append(line)
    body = "\n".join(lines)
    return f"/// {doc}\n#[rustfmt::skip]\npub const {name}: &[{kind}] = &[\n{body}\n];\n"


def range_table(name, doc, test):
    return table(name, doc, [f"(0x{a:x}, 0x{b:x})" for a, b in ranges(test)], "(u32, u32)")


def main():
    escaped = lambda text: '"' + "".join(f"\\u{{{ord(c):x}}}" for c in text) + '"'
    fold = [f"('\\u{{{ord(c):x}}}', {escaped(c.casefold())})" for c in CHARS if c.casefold() != c.lower()]
    title = [f"('\\u{{{ord(c):x}}}', {escaped(c.title())})" for c in CHARS if c.title() != c.upper()]
    digit = lambda c: c.isdigit() and not c.isdecimal()
    numeric = lambda c: c.isnumeric() and not c.isdigit()
    zeros = [f"0x{ord(c):x}" for c in CHARS if c.isdecimal() and unicodedata.decimal(c) == 0]
    parts = [
        "//! What Python says of characters (made by scripts/make_unicode_tables.py, Unicode "
        f"{unicodedata.unidata_version}).\n",
        range_table("NOT_PRINTABLE", "`not c.isprintable()`.", lambda c: not c.isprintable()),
        range_table("ALPHA", "`c.isalpha()`, beyond ASCII.", lambda c: c.isalpha() and ord(c) > 127),
        range_table("WORD", "`c.isalnum()` and combining, beyond ASCII: what an identifier goes on with.",
                    lambda c: ("a" + c).isidentifier() and ord(c) > 127),
        table("ZEROS", "The zeros of all decimal digits, which are ten in a row.", zeros, "u32"),
        range_table("DIGIT", "`c.isdigit()`, without decimal ones.", digit),
        range_table("NUMERIC", "`c.isnumeric()`, without digits.", numeric),
        table("CASEFOLD", "`c.casefold()` where it is not `c.lower()`.", fold, "(char, &str)"),
        table("TITLE", "`c.title()` where it is not `c.upper()`.", title, "(char, &str)"),
    ]
    OUT.write_text("\n".join(parts))
    print(sys.version.split()[0], OUT.stat().st_size, "bytes")


main()
