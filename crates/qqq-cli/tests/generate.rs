//! `qqq generate`: stop strings, prompts from files, batches of JSON lines.

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::Stdio,
};

use common::{Place, Run, TinyModel};
use serde_json::{Value, json};

/// A place whose model answers in letters, one token a byte.
fn place() -> Place {
    let place = Place::new();
    let letters: Vec<u8> = (b'a'..=b'z').collect();
    TinyModel::new().that_says(&letters).write(&place.path("model"));
    place
}

/// `qqq generate model` with these arguments, and this on standard input.
fn generate(place: &Place, arguments: &[&str], input: &[u8]) -> Run {
    let mut command = place.command();
    command.args(["generate", "model"]).args(arguments);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Whoever refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(input);
    Run::of(child.wait_with_output().unwrap())
}

/// The objects on the lines of standard output.
#[track_caller]
fn lines(run: &Run) -> Vec<Value> {
    run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Of 26 letters about half are likelier than all other tokens: the eight are letters.
const LETTERS: [&str; 10] =
    ["-n", "40", "--prompt", "Once", "--temperature", "9", "--top-k", "8", "--seed", "4"];

#[test]
fn a_text_ends_before_the_stop_string_that_is_complete_first() {
    let place = place();
    let with = |stops: &[&str]| {
        let mut arguments = LETTERS.to_vec();
        arguments.extend(stops.iter().flat_map(|s| ["--stop", s]));
        let printed = generate(&place, &arguments, b"").success().stdout;
        arguments.push("--json");
        let answer = generate(&place, &arguments, b"").success().json();
        assert_eq!(printed.strip_suffix('\n').unwrap(), answer["text"], "as printed");
        answer
    };
    let free = with(&[]);
    let text = free["text"].as_str().unwrap();
    assert_eq!((text.len(), &free["finish"], &free["stop_string"]), (40, &json!("length"), &Value::Null));
    // Of three tokens, and of three others that are complete earlier.
    let (late, early) = (&text[20..23], &text[7..10]);
    for stops in [vec![early], vec![late, early], vec![early, late], vec!["?", early]] {
        let answer = with(&stops);
        let at = text.find(early).unwrap();
        assert_eq!(answer["text"], text[..at]);
        assert_eq!((&answer["finish"], &answer["stop_string"]), (&json!("stop_string"), &json!(early)));
        assert_eq!(answer["new_tokens"], at + 3, "the tokens of the stop string were made");
    }
    // What only begins like one is printed, at the end as well.
    let almost = format!("{}?", &text[37..]);
    assert_eq!(with(&[&format!("{early}?"), &almost])["text"], text);
    // The longest of those that are complete at the same character.
    assert_eq!(with(&[&text[8..10], &text[5..10]])["stop_string"], text[5..10]);
}

#[test]
fn stop_strings_that_stop_nothing() {
    let place = place();
    generate(&place, &["--prompt", "a", "--stop", ""], b"").failure(2, "--stop: the text is empty");
    let run = generate(&place, &["--prompt", "a", "-n", "1", "--stop", "\\nUser:"], b"").success();
    assert!(run.stderr.contains("has a backslash and a letter in it"), "{}", run.stderr);
}

#[test]
fn a_stop_string_may_be_a_special_token() {
    let place = place();
    // A token that gives no text, is no end token, and is what the model says.
    let mut model = TinyModel::new().that_says(&[]);
    let special = model.tokenizer["added_tokens"][0].clone();
    let mut stop = special;
    (stop["id"], stop["content"]) = (json!(258), json!("<|call|>"));
    model.tokenizer["added_tokens"].as_array_mut().unwrap().push(stop);
    let (.., head) = model.tensors.iter_mut().find(|(name, ..)| name == "lm_head.weight").unwrap();
    let width = head.len() / 272;
    for (id, sign) in [(usize::from(b'a'), 1.0), (258, -1.0)] {
        for (i, value) in head[id * width..][..width].iter_mut().enumerate() {
            *value = sign * (0.1 + (i % 7) as f32);
        }
    }
    model.write(&place.path("model"));
    let answer = |arguments: &[&str]| {
        let mut all = vec!["--prompt", "Once", "-n", "30", "--json"];
        all.extend(arguments);
        generate(&place, &all, b"").success().json()
    };
    let free = answer(&[]);
    let ids: Vec<u64> = free["tokens"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap()).collect();
    let Some(at) = ids.iter().position(|id| *id == 258) else {
        panic!("the model never says it: {ids:?}");
    };
    let stopped = answer(&["--stop", "<|call|>"]);
    assert_eq!((&stopped["finish"], &stopped["stop_string"]), (&json!("stop_string"), &json!("<|call|>")));
    assert_eq!(
        (stopped["text"].as_str().unwrap(), stopped["new_tokens"].as_u64()),
        (&*"a".repeat(at), Some(at as u64 + 1))
    );
}

#[test]
fn a_prompt_from_a_file_is_that_from_standard_input() {
    let place = place();
    let text = "Once upon a\ntime\n";
    fs::write(place.path("prompt.txt"), format!("\u{FEFF}{text}")).unwrap();
    let utf16: Vec<u8> = [0xFEFF].into_iter().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    fs::write(place.path("utf16.txt"), utf16).unwrap();
    let tokens = |arguments: &[&str], input: &str| {
        let mut all = vec!["-n", "5", "--raw", "--json"];
        all.extend(arguments);
        let answer = generate(&place, &all, input.as_bytes()).success().json();
        (answer["prompt_tokens"].clone(), answer["text"].clone())
    };
    let wanted = tokens(&["--prompt", "Once upon a\ntime"], "");
    assert_eq!(tokens(&["--prompt-file", "prompt.txt"], ""), wanted);
    assert_eq!(tokens(&["--prompt-file", "utf16.txt"], ""), wanted);
    assert_eq!(tokens(&["--prompt-file", "-"], text), wanted);
    assert_eq!(tokens(&["--prompt", "-"], text), wanted);
    assert_eq!(tokens(&[], text), wanted);

    let refused = |arguments: &[&str], says: &str| generate(&place, arguments, b"").failure(2, says);
    refused(&["--prompt-file", "none.txt"], "none.txt");
    refused(&["--prompt", "a", "--prompt-file", "prompt.txt"], "cannot be used with");
    // What is no text is none from either.
    for (bytes, says) in [
        (b"ab\xff" as &[u8], ", line 1: it is not UTF-8 text (byte 2 is invalid)"),
        (b"a\0b\0", ": it is no text, but binary data"),
        (b"PK\x03\x04abc", ": it is no text, but a zip archive"),
        (b"PAR1abc", ": it is a parquet file"),
        (b"\xff\xfea\0\n\0\x00\xd8a\0", ": line 2 is not UTF-16: half of a surrogate pair"),
    ] {
        fs::write(place.path("bytes"), bytes).unwrap();
        refused(&["--prompt-file", "bytes"], &format!("cannot read the prompt: bytes{says}"));
        for arguments in [&[] as &[&str], &["--prompt", "-"], &["--prompt-file", "-"]] {
            let says = format!("cannot read the prompt: standard input{says}");
            generate(&place, arguments, bytes).failure(2, &says);
        }
    }
    for blank in [b"" as &[u8], b" \r\n\n"] {
        generate(&place, &["--prompt", "-"], blank).failure(2, "error: the prompt is empty");
    }
    // One line end is the writer's, others are the text's.
    let text = format!("{text}\n\r\n");
    fs::write(place.path("prompt.txt"), &text).unwrap();
    let wanted = tokens(&["--prompt", "Once upon a\ntime\n\n"], "");
    assert_eq!(wanted.0, "Once upon a\ntime\n\n".len());
    assert_eq!(tokens(&["--prompt-file", "prompt.txt"], ""), wanted);
    assert_eq!(tokens(&["--prompt", "-"], &text), wanted);
}

const BATCH: &str = r#"{"prompt": "Once", "id": "first"}
"Twice upon a time"

{"messages": [{"role": "system", "content": "Brief."}, {"role": "user", "content": "Thrice"}], "id": 3}
{"messages": [{"role": "user", "content": [{"type": "text", "text": "Four"}]}], "seed": 11}
{"prompt": "Five"}
"#;

#[test]
fn a_batch_answers_each_line_as_if_it_were_alone() {
    let place = place();
    let alone = |prompt: &str, more: &[&str]| {
        let mut arguments = vec!["-n", "30", "--json", "--prompt", prompt];
        arguments.extend(more);
        generate(&place, &arguments, b"").success().json()["text"].clone()
    };
    let wanted = [
        alone("Once", &[]),
        alone("Twice upon a time", &[]),
        alone("Thrice", &["--system", "Brief."]),
        alone("Four", &[]),
        alone("Five", &[]),
    ];
    for size in ["1", "2", "16"] {
        let arguments = ["--batch", "-n", "30", "--batch-size", size];
        let run = generate(&place, &arguments, BATCH.as_bytes()).success();
        let answers = lines(&run);
        let texts: Vec<Value> = answers.iter().map(|a| a["text"].clone()).collect();
        assert_eq!(texts, wanted, "{size} together");
        let numbers: Vec<u64> = answers.iter().map(|a| a["line"].as_u64().unwrap()).collect();
        assert_eq!(numbers, [1, 2, 4, 5, 6]);
        let ids: Vec<Option<&Value>> = answers.iter().map(|a| a.get("id")).collect();
        assert_eq!(ids, [Some(&json!("first")), None, Some(&json!(3)), None, None]);
        assert!(answers.iter().all(|a| a["finish"] == "length" && a["new_tokens"] == 30));
        assert!(run.stderr.contains("prompts: 5 with"), "{}", run.stderr);
    }
}

#[test]
fn draws_of_a_batch_are_defined() {
    let place = place();
    let sampled = |size: &str, seed: &str| {
        let arguments = ["--batch", "-n", "30", "--temperature", "1.5", "--seed", seed, "--batch-size", size];
        let run = generate(&place, &arguments, BATCH.as_bytes()).success();
        lines(&run).iter().map(|a| a["text"].clone()).collect::<Vec<_>>()
    };
    let texts = sampled("1", "5");
    for size in ["3", "16"] {
        assert_eq!(sampled(size, "5"), texts, "{size} together");
    }
    let alone = |prompt: &str, seed: &str| {
        let arguments = ["-n", "30", "--temperature", "1.5", "--seed", seed, "--json", "--prompt", prompt];
        generate(&place, &arguments, b"").success().json()["text"].clone()
    };
    // The first of a batch draws as the only one; a seed of its own counts alone.
    assert_eq!(texts[0], alone("Once", "5"));
    assert_eq!(texts[3], alone("Four", "11"));
    let others = sampled("16", "6");
    assert_eq!(others[3], texts[3]);
    assert_ne!(others[4], texts[4]);
    assert_ne!(texts[4], alone("Five", "5"), "prompts of one seed draw independently");
}

#[test]
fn a_line_may_leave_its_seed_to_chance() {
    let place = place();
    let options = ["-n", "30", "--temperature", "1.5"];
    let input = "{\"prompt\": \"Once\", \"seed\": -1}\n".repeat(4) + "{\"prompt\": \"Once\", \"seed\": 3}\n";
    let run = generate(&place, &[&options[..], &["--batch"]].concat(), input.as_bytes()).success();
    let answers = lines(&run);
    assert_eq!(answers[4].get("seed"), None, "it is the user's own");
    let seeds: Vec<u64> = answers[..4].iter().map(|a| a["seed"].as_u64().unwrap()).collect();
    assert!(seeds.iter().any(|s| *s != seeds[0]), "{seeds:?}");
    for (answer, seed) in answers.iter().zip(&seeds) {
        let seed = seed.to_string();
        let arguments = [&options[..], &["--seed", &seed, "--json", "--prompt", "Once"]].concat();
        assert_eq!(generate(&place, &arguments, b"").success().json()["text"], answer["text"]);
    }
}

#[test]
fn a_batch_with_json_is_one_object() {
    let place = place();
    fs::write(place.path("prompts.jsonl"), BATCH).unwrap();
    let arguments = ["--batch", "-n", "8", "--prompt-file", "prompts.jsonl", "--json"];
    let report = generate(&place, &arguments, b"").success().json();
    assert_eq!((&report["prompts"], report["answers"].as_array().unwrap().len()), (&json!(5), 5));
    let plain = generate(&place, &arguments[..5], b"").success();
    let without_times = |answer: &Value| {
        let mut answer = answer.clone();
        answer.as_object_mut().unwrap().retain(|key, _| !key.ends_with("seconds"));
        answer
    };
    let listed: Vec<_> = report["answers"].as_array().unwrap().iter().map(without_times).collect();
    assert_eq!(listed, lines(&plain).iter().map(without_times).collect::<Vec<_>>());
}

#[test]
fn stop_strings_end_each_text_of_a_batch() {
    let place = place();
    let free = lines(&generate(&place, &["--batch", "-n", "30"], BATCH.as_bytes()).success());
    let stop = &free[1]["text"].as_str().unwrap()[10..13];
    let arguments = ["--batch", "-n", "30", "--stop", stop, "--batch-size", "2"];
    let stopped = lines(&generate(&place, &arguments, BATCH.as_bytes()).success());
    assert_eq!(stopped[1]["finish"], "stop_string");
    for (free, stopped) in free.iter().zip(&stopped) {
        let text = free["text"].as_str().unwrap();
        assert_eq!(stopped["text"], text.split(stop).next().unwrap());
    }
}

#[test]
fn a_bad_line_is_refused_before_any_work() {
    let place = place();
    // Not even the model is looked for.
    for (line, says) in [
        ("{\"prompt\": 3}", "standard input, line 2: the prompt is not a text"),
        ("{\"prompt\": ", "standard input, line 2: it is no JSON"),
        ("{\"prompt\": \"a\", \"top_k\": 1}", "standard input, line 2: the key \"top_k\" is not known"),
        (
            "{\"id\": 1, \"prompt\": \"a\", \"id\": 2}",
            "standard input, line 2: the key \"id\" is there twice",
        ),
    ] {
        let mut command = place.command();
        let mut child = command
            .args(["generate", "nowhere", "--batch", "--offline"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(format!("\"fine\"\n{line}\n").as_bytes()).unwrap();
        let run = Run::of(child.wait_with_output().unwrap()).failure(2, says);
        assert_eq!(run.stdout, "");
        assert!(run.stderr.contains("hint: a line is"), "{}", run.stderr);
    }
    // What only the model can tell.
    let long = "x".repeat(3000);
    for (line, says) in [
        (json!({ "prompt": long }), "the model's context of 2048 leaves no room"),
        (json!({ "messages": [{"role": "user"}] }), "message 1: it has no content"),
        (json!({ "messages": [3] }), "message 1 is a number"),
    ] {
        let run = generate(&place, &["--batch"], format!("\"fine\"\n{line}\n").as_bytes());
        let run = run.failure(
            2,
            &format!("standard input, line 2: {says}")
                .replace(": the model", ": the prompt has 3018 tokens; the model"),
        );
        assert_eq!(run.stdout, "");
    }
    let run = generate(&place, &["--batch", "--raw"], BATCH.as_bytes());
    run.failure(2, "standard input, line 4: there are messages, but model is used without a chat template");
    generate(&place, &["--batch"], b"\n").failure(2, "standard input: there are no prompts");
    for size in ["0", "-1", "x"] {
        generate(&place, &["--batch", "--batch-size", size], b"\"a\"")
            .failure(2, "for '--batch-size <N>': a whole number from 1 on is needed");
    }
    generate(&place, &["--batch", "--prompt", "a"], b"").failure(2, "cannot be used with");
    let failed = generate(&place, &["--batch", "--json"], b"1").failure(2, "line 1").json();
    assert!(failed["error"]["message"].as_str().unwrap().contains("standard input, line 1"));
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_batch_with_what_is_complete() {
    use rustix::process::{Pid, Signal, kill_process};

    let place = place();
    let all = "\"Once upon a time\"\n".repeat(3000);
    fs::write(place.path("prompts.jsonl"), all).unwrap();
    for json in [false, true] {
        let mut command = place.command();
        command.args(["generate", "model", "--batch", "--prompt-file", "prompts.jsonl", "-n", "400"]);
        command.args(["--batch-size", "4"]).args(json.then_some("--json"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        if json {
            // Nothing shows how far it is: it has begun by then, or has not.
            std::thread::sleep(std::time::Duration::from_secs(2));
        } else {
            out.read_line(&mut first).unwrap();
        }
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut out, &mut rest).unwrap();
        let run = Run::of(child.wait_with_output().unwrap());
        let run = Run { stdout: first + &rest, ..run }.failure(130, "interrupted");
        let answers = match json {
            true => run.json()["answers"].as_array().cloned().unwrap_or_default(),
            false => lines(&run),
        };
        assert!(answers.len() < 3000 && (json || !answers.is_empty()));
        assert!(answers.iter().all(|a| a["new_tokens"] == 400 && a["finish"] == "length"));
        assert!(answers.windows(2).all(|w| w[0]["line"].as_u64() < w[1]["line"].as_u64()));
        if !json {
            assert!(run.stderr.contains("of 3000 answers are complete"), "{}", run.stderr);
        }
    }
}

/// What generation_config.json asks for and is not done.
#[test]
fn settings_of_the_model_that_are_not_done() {
    let place = Place::new();
    let settings = place.path("model").join("generation_config.json");
    std::fs::write(&settings, r#"{"temperature": 0.6, "suppress_tokens": [65]}"#).unwrap();
    place.run("generate model --prompt x -n 2").failure(2, "suppress_tokens is [65]");
    place.run("eval perplexity model --text text.txt --window 64 --limit 1").success();
    std::fs::write(&settings, r#"{"temperature": 0.6, "suppress_tokens": []}"#).unwrap();
    place.run("generate model --prompt x -n 2").success();
}
