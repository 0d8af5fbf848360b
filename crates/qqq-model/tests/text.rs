//! Files of every kind, and the texts that Python makes of them (scripts/make_text_vectors.py); and what is refused.

use std::{fs, path::Path};

use qqq_model::{
    ChatTemplate, TextOptions, TextReader,
    text::{Place, TextFormat, TextProblem},
    tokenizer::SpecialTokens,
};
use qqq_model::{ModelError, Result};

#[derive(serde::Deserialize)]
struct Vectors {
    template: String,
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    hex: String,
    template: bool,
    field: Option<String>,
    text: String,
}

fn special() -> SpecialTokens {
    SpecialTokens { bos: Some("<s>".into()), eos: Some("</s>".into()), unk: None, pad: None }
}

/// All pieces of a file, one after the other, and what the reader says of it.
fn read(path: &Path, options: &TextOptions, template: Option<&str>) -> Result<(String, Option<String>)> {
    let load = || template.map(|t| ChatTemplate::new(t, &special())).transpose();
    let mut reader = TextReader::open(path, options, Box::new(load))?;
    let mut text = String::new();
    while let Some(piece) = reader.next_piece()? {
        text += &piece;
    }
    Ok((text, reader.describe()))
}

#[test]
fn texts_are_those_of_python() {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/texts.json");
    let vectors: Vectors = serde_json::from_slice(&fs::read(vectors).unwrap()).unwrap();
    assert_eq!(vectors.cases.len(), 58);
    let dir = tempfile::tempdir().unwrap();
    for case in vectors.cases {
        let bytes: Vec<u8> = (0..case.hex.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&case.hex[i..i + 2], 16).unwrap())
            .collect();
        let path = dir.path().join(&case.name);
        fs::write(&path, bytes).unwrap();
        let options = TextOptions { field: case.field, ..TextOptions::default() };
        let template = case.template.then_some(vectors.template.as_str());
        let (text, _) = read(&path, &options, template).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert!(text == case.text, "{}:\n{text:?}\nbut Python has\n{:?}", case.name, case.text);
    }
}

/// A template that knows parts of a content gets them (transformers 5 gives this text); one that does not gets their text.
#[test]
fn contents_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("parts.jsonl");
    let content = r#"[{"type": "text", "text": " a "}, {"type": "text", "text": "b"}]"#;
    fs::write(&path, format!(r#"{{"messages": [{{"role": "user", "content": {content}}}], "tools": []}}"#))
        .unwrap();
    for (template, expected) in [
        (
            "{% for m in messages %}{% for p in m.content %}[{{ p.type }}:{{ p.text|trim }}]{% endfor %}{% endfor %}",
            "[text:a][text:b]",
        ),
        ("{% for m in messages %}<{{ m.content }}>{% endfor %}", "< a b>"),
        ("{% for m in messages %}{{ '<' + m.content + '>' }}{% endfor %}", "< a b>"),
        ("{% if tools is none %}none{% else %}{{ tools|length }}{% endif %}", "0"),
    ] {
        assert_eq!(read(&path, &TextOptions::default(), Some(template)).unwrap().0, expected);
    }
}

/// What is wrong with a file of this name and content.
fn error(name: &str, content: &[u8], options: &TextOptions) -> (Place, TextProblem, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    match read(&path, options, None) {
        Err(ModelError::Text(e)) => {
            assert!(e.to_string().contains(name), "{e}");
            (e.place, e.problem, e.reason)
        }
        Err(e) => panic!("{name}: {e}"),
        Ok((text, _)) => panic!("{name} is no error: {text:?}"),
    }
}

#[test]
fn what_cannot_be_read_is_an_error_with_its_line() {
    use TextProblem::{Blank, Content, Field, NotJson};
    let line = Place::Line;
    let text = |n: usize| "{\"text\": \"a\"}\n".repeat(n);
    for (name, content, place, problem, says) in [
        ("cut.jsonl", text(3) + "{\"text\": \"a", line(4), NotJson, "EOF"),
        ("cut-within.jsonl", text(3) + "{\"text\": \"a\n" + &text(2), line(4), NotJson, "EOF"),
        ("first.jsonl", "{\"text\": \"a\n".to_owned() + &text(2), line(1), NotJson, "control character"),
        ("prose.txt", text(1) + "is how a record looks.", line(2), NotJson, "expected value"),
        ("prose2.txt", "{\"a\": 1} is an object.".into(), line(1), NotJson, "trailing characters"),
        ("name.json", "Once upon".into(), line(1), NotJson, "name says JSON"),
        ("table.csv", "text,label\na,1\n".into(), line(1), NotJson, "comma"),
        ("not.parquet", "hello".into(), Place::File, Content, "no parquet"),
        ("array.json", "[\n{\"text\": \"a\"},\n{\"text\" \"b\"}]".into(), line(3), NotJson, "expected `:`"),
        ("open.json", "[{\"text\": \"a\"}\n".into(), line(2), NotJson, "does not end"),
        ("comma.json", "[{\"text\": \"a\"},\n]".into(), line(2), NotJson, "comma"),
        ("no-comma.json", "[{\"text\": \"a\"}\n{\"text\": \"a\"}]".into(), line(2), NotJson, "comma"),
        ("two.json", "[{\"text\": \"a\"}]\n\n[{}]".into(), line(3), NotJson, "follows"),
        ("lists.jsonl", "[\"a\"]\n[\"b\"]".into(), line(2), NotJson, "follows"),
        (
            "indented.json",
            "{\n \"text\": \"a\"\n}\n{\n \"text\": 'b'\n}".into(),
            line(5),
            NotJson,
            "expected value",
        ),
        ("missing.jsonl", text(2) + "{\"txt\": \"a\"}", line(3), Field, "fields: txt"),
        ("numbers.json", "[1,\n 2]".into(), line(1), NotJson, "a number where"),
        ("list.jsonl", "{\"text\": [\"a\"]}".into(), line(1), Field, "\"text\" is a list"),
        ("data.json", "{\"data\": [{\"text\": \"a\"}]}".into(), line(1), Field, "fields: data"),
        (
            "messages.jsonl",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}".into(),
            line(1),
            Content,
            "chat template",
        ),
        (
            "speaker.jsonl",
            "{\"conversations\": [{\"from\": \"narrator\", \"value\": \"a\"}]}".into(),
            line(1),
            Field,
            "narrator",
        ),
        (
            "image.jsonl",
            "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\"}]}]}".into(),
            line(1),
            Field,
            "image",
        ),
        (
            "content.jsonl",
            "{\"messages\": [{\"role\": \"user\", \"content\": 3}]}".into(),
            line(1),
            Field,
            "a number",
        ),
        ("nothing.jsonl", "{\"messages\": [{\"role\": \"user\"}]}".into(), line(1), Field, "no content"),
        ("blank.txt", " \n\n".into(), Place::File, Blank, "no text"),
        ("empty.jsonl", "".into(), Place::File, Blank, "no text"),
        ("empty.json", "[]".into(), Place::File, Blank, "no text"),
        ("nulls.jsonl", "{\"text\": null}\n".repeat(3), Place::File, Blank, "no text"),
    ] {
        let (at, kind, reason) = error(name, content.as_bytes(), &TextOptions::default());
        assert!(reason.contains(says), "{name}: {reason}");
        assert_eq!((at, kind), (place, problem), "{name}: {reason}");
    }
}

#[test]
fn bytes_that_are_no_text() {
    let auto = TextOptions::default();
    let check = |name: &str, content: &[u8], at: Place, says: &str| {
        let (place, _, reason) = error(name, content, &auto);
        assert!(reason.contains(says), "{name}: {reason}");
        assert_eq!(place, at, "{name}: {reason}");
    };
    check("latin1.txt", b"one\ntwo caf\xE9\n", Place::Line(2), "UTF-8 text (byte 11");
    let mut long = "word \n".repeat(30_000).into_bytes();
    long.extend(b"\xFFx");
    check("late.txt", &long, Place::Line(30_001), "byte 180000");
    check("cut.txt", "größe ü".as_bytes().split_last().unwrap().1, Place::Line(1), "UTF-8");
    check("a.bin", b"PK\x03\x04rest", Place::File, "zip archive");
    check("a.txt.xz", b"\xFD7zXZ\0rest", Place::File, "xz");
    check("a.bz2", b"BZh91AY", Place::File, "bzip2");
    check("a.pdf", b"%PDF-1.7\n", Place::File, "PDF");
    check("a.arrow", b"ARROW1\0\0", Place::File, "cannot be read as Arrow");
    check("stream.arrow", b"\xFF\xFF\xFF\xFFrubbish", Place::File, "cannot be read as Arrow");
    check("text.arrow", b"some text", Place::File, "no Arrow file");
    let mut tar = vec![b'x'; 600];
    tar[257..262].copy_from_slice(b"ustar");
    check("a.tar", &tar, Place::File, "tar archive");
    check("utf32.txt", b"\xFF\xFE\0\0a\0\0\0", Place::File, "UTF-32");
    let units = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    check("no-mark.txt", &units("some text"), Place::File, "byte order mark");
    let half = [vec![0xFF, 0xFE], units("a\nb"), vec![0, 0xD8, b'x', 0]].concat();
    check("half.txt", &half, Place::File, "line 2 is not UTF-16");
    check("odd.txt", &[&[0xFF, 0xFE][..], &units("ab"), b"c"].concat(), Place::File, "within a character");
    check("damaged.gz", b"\x1F\x8B\x08\0\0\0\0\0\0\x03rubbish", Place::File, "gzip data are damaged");
    check("damaged.zst", b"\x28\xB5\x2F\xFDrubbish", Place::File, "Zstandard data are damaged");
    check("damaged.parquet", b"PAR1rubbishPAR1", Place::File, "cannot be read as parquet");
}

#[test]
fn what_content_leaves_open_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    let as_ = |format| TextOptions { format, ..TextOptions::default() };
    let get = |content: &str, options: &TextOptions| {
        fs::write(&path, content).unwrap();
        read(&path, options, None).unwrap()
    };
    let record = "{\"text\": \"one\", \"content\": \"two\"}\n{\"text\": null}";
    assert_eq!(get(record, &as_(TextFormat::Plain)), (record.into(), None));
    let said = "a.txt: JSON, field \"text\" (there is content as well); 1 without a text left out";
    assert_eq!(get(record, &as_(TextFormat::Auto)), ("one".into(), Some(said.into())));
    // A line in quotes may be speech.
    let speech = "\"Yes,\" he said.\n\"No.\"";
    assert_eq!(get(speech, &as_(TextFormat::Auto)).0, speech);
    assert_eq!(get("\"Yes.\"\n\"No.\"", &as_(TextFormat::Json)).0, "Yes.\n\nNo.");
    let (_, problem, _) = error("a.txt", b"plain", &as_(TextFormat::Json));
    assert_eq!(problem, TextProblem::NotJson);
    let field = TextOptions { field: Some("body".into()), ..TextOptions::default() };
    let (place, problem, reason) = error("a.jsonl", b"{\"body\": \"a\"}\n{\"text\": \"b\"}", &field);
    assert_eq!((place, problem), (Place::Line(2), TextProblem::Field));
    assert!(reason.contains("\"body\"") && reason.contains("text"), "{reason}");
}

#[test]
fn brackets_do_not_make_a_text_json() {
    let dir = tempfile::tempdir().unwrap();
    for (i, text) in
        ["[Music]\n\nHello", "{{Infobox}}\ntext", "[1] A. Author. [2] B.", "{ int x; }"].iter().enumerate()
    {
        let path = dir.path().join(format!("{i}.txt"));
        fs::write(&path, text).unwrap();
        assert_eq!(read(&path, &TextOptions::default(), None).unwrap(), ((*text).into(), None));
    }
}

#[test]
fn only_what_is_asked_for_is_read() {
    let dir = tempfile::tempdir().unwrap();
    // Damage behind the first records is not come to.
    let record = format!("{{\"text\": \"{}\"}}\n", "word ".repeat(1000));
    for (name, content) in [
        ("a.jsonl", record.repeat(100) + "damage"),
        ("a.json", format!("[{}damage", record.replace('\n', ",").repeat(100))),
        ("a.txt", "word\n".repeat(100_000) + "\u{FEFF}"),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        let mut reader = TextReader::open(&path, &TextOptions::default(), Box::new(|| Ok(None))).unwrap();
        for _ in 0..3 {
            assert!(reader.next_piece().unwrap().is_some_and(|p| p.contains("word") && p.len() < 100_000));
        }
    }
}

#[test]
fn a_file_has_its_hash_however_much_of_it_was_read() {
    use sha2::{Digest, Sha256};
    let dir = tempfile::tempdir().unwrap();
    let long = "word\n".repeat(100_000);
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, long.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let utf16 = long.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    for (name, content) in [
        ("a.txt", long.clone().into_bytes()),
        ("bom.txt", [b"\xEF\xBB\xBF", long.as_bytes()].concat()),
        ("utf16.txt", [&b"\xFF\xFE"[..], &utf16].concat()),
        ("a.jsonl", format!("{{\"text\": {long:?}}}\n").repeat(3).into_bytes()),
        ("a.txt.gz", [&gzip[..], &gzip].concat()),
        ("damaged.jsonl", format!("{{\"text\": {long:?}}}\ndamage").into_bytes()),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, &content).unwrap();
        let expected: String = Sha256::digest(&content).iter().map(|b| format!("{b:02x}")).collect();
        for pieces in [0, 1] {
            let mut reader = TextReader::open(&path, &TextOptions::default(), Box::new(|| Ok(None))).unwrap();
            for _ in 0..pieces {
                reader.next_piece().unwrap();
            }
            assert_eq!(reader.sha256().unwrap().as_ref(), Some(&expected), "{name}, {pieces}");
            assert_eq!(reader.next_piece().unwrap(), None, "the rest is gone");
        }
    }
}

/// What a file is shows behind the blanks that it begins with, however many these are.
#[test]
fn blanks_before_json() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text");
    let whole = |content: &str| {
        fs::write(&path, content).unwrap();
        read(&path, &TextOptions::default(), None).unwrap().0
    };
    // Up to the last byte of what is looked at, just behind it, and far behind it.
    for blanks in [0, 65_534, 65_535, 65_536, 200_000] {
        for blank in ["\n", " "] {
            let blanks = blank.repeat(blanks);
            let json = whole(&format!("{blanks}{{\"text\": \"one\"}}\n{{\"text\": \"two\"}}\n"));
            assert!(
                json.starts_with("one") && json.ends_with("two"),
                "{} blanks: {:?}",
                blanks.len(),
                &json[..9]
            );
            let plain = format!("{blanks}[Music] Once upon a time");
            assert!(whole(&plain) == plain, "{} blanks", blanks.len());
        }
    }
    fs::write(&path, " ".repeat(70_000)).unwrap();
    assert!(read(&path, &TextOptions::default(), None).unwrap_err().to_string().contains("no text"));
}

/// A file that is written to while it is read gives no text.
#[test]
fn a_text_that_changes_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text");
    fs::write(&path, "one two\n".repeat(100_000)).unwrap();
    let mut reader = TextReader::open(&path, &TextOptions::default(), Box::new(|| Ok(None))).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1000).unwrap();
    let outcome = loop {
        match reader.next_piece() {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("was changed while it was in use"), "{error}");
}
