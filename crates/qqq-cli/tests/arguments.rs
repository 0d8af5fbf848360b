//! The command line: numbers, repeated options, variables of the environment, what errors look like.

mod common;

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use common::{Place, Run};
use serde_json::{Value, json};

/// A command line (split at spaces) with these variables.
fn with(place: &Place, variables: &[(&str, &str)], line: &str) -> Run {
    let mut command = place.command();
    command.envs(variables.iter().copied()).args(line.split_whitespace());
    Run::of(command.output().unwrap())
}

#[test]
fn minus_one_means_what_it_means_elsewhere() {
    let place = Place::new();
    // The model's context of 2048, unless it ends before.
    let json = place.run("generate model --raw --prompt Hello -n -1 --json").success().json();
    let (new, prompt) = (json["new_tokens"].as_u64().unwrap(), json["prompt_tokens"].as_u64().unwrap());
    assert!(json["finish"] == "stop" || new + prompt == 2048, "{new} {prompt}");
    let sampled = |options: &str| {
        let line = format!("generate model --raw --prompt Hello -n 24 --temperature 1 --json {options}");
        place.run(&line).success().json()
    };
    let all = sampled("--seed 3");
    assert_eq!(sampled("--seed 3 --top-k -1")["tokens"], all["tokens"]);
    assert_eq!(sampled("--seed 3 --top-k 0")["tokens"], all["tokens"]);
    let random = sampled("--seed -1");
    let seed = random["seed"].as_u64().expect("the seed that was drawn is told");
    assert_eq!(sampled(&format!("--seed {seed}"))["tokens"], random["tokens"]);
    assert_eq!(all["seed"], Value::Null, "nothing was drawn");
    let told =
        place.run("generate model --raw --prompt Hello -n 2 --temperature 1 --seed -1").success().stderr;
    assert!(told.starts_with("seed: ") && told.contains("(drawn; --seed "), "{told}");

    let windows = |limit: &str| {
        let line = format!("eval perplexity model --text text.txt --window 512 --json {limit}");
        place.run(&line).success().json()["windows"].clone()
    };
    assert_eq!((windows("--limit -1"), windows("--limit 2")), (windows(""), json!(2)));
    place.run("inspect model --summary --threads -1").success();
    with(&place, &[("QQQ_THREADS", "-1")], "inspect model --summary").success();
    // Before the command or behind it, the last counts.
    let bench =
        "--threads 2 bench model model --prompt-tokens 4 --new-tokens 2 --repeat 1 --json --threads 1";
    assert_eq!(place.run(bench).success().json()["results"][0]["threads"], 1);

    let quantized =
        place.run("quantize model -o out --windows 2 --window 64 --seed -1 --json").success().json();
    assert_eq!(quantized["seed"], quantized["report"]["recipe"]["seed"]);
}

#[test]
fn sampling_options_without_sampling_are_told() {
    let place = Place::new();
    let warnings = |options: &str| {
        let line = format!("generate model --prompt x -n 1 --json {options}");
        place.run(&line).success().json()["warnings"].as_array().unwrap().len()
    };
    assert_eq!(warnings("--top-p 0.9 --seed 3"), 2);
    // Whoever says 0 means it.
    for options in ["", "--top-p 0.9 --temperature 0", "--top-p 0.9 --seed 3 --temperature 1"] {
        assert_eq!(warnings(options), 0, "{options}");
    }
}

#[test]
fn other_negative_numbers_say_what_to_write() {
    let place = Place::new();
    for (line, option, says) in [
        ("generate model --prompt x -n -2", "--max-new-tokens", "-1: until the model ends"),
        ("chat model -n 0", "--max-new-tokens", "-1: until the model ends"),
        ("generate model --prompt x --seed -2", "--seed", "-1 for a random one"),
        ("generate model --prompt x --top-k -5", "--top-k", "0 or -1 for all tokens"),
        ("eval perplexity model --text text.txt --limit -2", "--limit", "-1 for all windows"),
        ("eval perplexity model --text text.txt --window -1", "--window", "from 1 on"),
        ("eval perplexity model --text text.txt --stride -1", "--stride", "from 1 on"),
        ("quantize model -o out --windows -1", "--windows", "from 0 on"),
        ("quantize model -o out --window -1", "--window", "from 1 on"),
        ("quantize model -o out --smooth-tokens -1", "--smooth-tokens", "from 1 on"),
        ("bench model model --repeat -1", "--repeat", "from 1 on"),
        ("bench model model --new-tokens 1", "--new-tokens", "at least 2"),
        ("bench gemm --tokens 1,-1", "--tokens", "from 1 on"),
        ("bench gemm --gpu -1", "--gpu", "from 0 on"),
        ("kernels build -o k.zip --tokens -1", "--tokens", "from 1 on"),
        ("inspect model --threads -4", "--threads", "-1 for all cores"),
    ] {
        let run = place.run(line).failure(2, option);
        assert!(run.stderr.contains(says), "{line}: {}", run.stderr);
    }
    assert_eq!(place.names(), ["model", "text.txt"]);
}

#[test]
fn the_last_of_a_repeated_option_counts() {
    let place = Place::new();
    let json = place
        .run("--json generate model --json --raw --raw --prompt Hello -n 9 -n 3 --prompt Hi --max-new-tokens 2")
        .success()
        .json();
    assert_eq!((&json["prompt_tokens"], &json["new_tokens"]), (&json!(2), &json!(2)));
    let report = place
        .run("quantize model -o no -o out --calibration text.txt --windows 9 --windows 2 --window 64 --method rtn --method gptq --json")
        .success()
        .json();
    assert_eq!(report["report"]["recipe"]["compensate"], true);
    assert_eq!(report["report"]["recipe"]["calibration"]["windows"], 2);
    assert_eq!(place.names(), ["model", "out", "text.txt"]);
    // That is for options: two models are one too many.
    place.run("inspect model out").failure(2, "unexpected argument 'out'");
}

#[test]
fn help_is_a_command_too() {
    let place = Place::new();
    for words in ["quantize", "eval", "eval kld", "kernels build"] {
        let help = place.run(&format!("help {words}")).success();
        assert_eq!(help.stdout, place.run(&format!("{words} --help")).success().stdout, "{words}");
        assert_eq!(help.stderr, "");
    }
    place.run("help frob").failure(2, "frob");
}

#[test]
fn json_errors_carry_the_whole_message() {
    let place = Place::new();
    let message = |line: &str| {
        let run = place.run(line).failure(2, "");
        let message = run.json()["error"]["message"].as_str().unwrap().to_owned();
        // The same as a person sees.
        assert_eq!(run.stderr.trim_end(), format!("error: {message}"));
        message
    };
    let misspelled = message("quantize model --otput out --json");
    assert!(misspelled.contains("tip: a similar argument exists: '--output'"), "{misspelled}");
    assert!(misspelled.contains("\n\nUsage: qqq quantize"), "{misspelled}");
    let value = message("quantize model -o out --method best --json");
    assert!(value.contains("[possible values: gptq, rtn]"), "{value}");
    let missing = message("eval kld model --json");
    assert!(missing.contains("\n  --baseline <MODEL>\n  --text <FILE>\n"), "{missing}");
}

#[test]
fn json_has_warnings_and_notes() {
    let place = Place::new();
    fs::write(place.path("lines.jsonl"), json!({"text": common::TEXT}).to_string()).unwrap();
    for line in [
        "eval perplexity model --text lines.jsonl --window 256",
        "eval kld model --baseline model --text lines.jsonl --window 256",
    ] {
        let json = place.run(&format!("{line} --json --quiet")).success().json();
        assert_eq!(json["warnings"], json!([]));
        assert_eq!(json["notes"], json!(["lines.jsonl: JSON, field \"text\""]), "{line}");
    }
    // A tokenizer that leaves something to say says it once, of both models.
    let config = place.path("model/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    // The model has 272 embeddings.
    for id in 258..=272 {
        let mut token = tokenizer["added_tokens"][1].clone();
        (token["id"], token["content"]) = (json!(id), json!(format!("<pad{id}>")));
        tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
    }
    fs::write(config, tokenizer.to_string()).unwrap();
    place.quantize("out", "");
    let kld = place.run("eval kld out --baseline model --text text.txt --window 256 --json").success();
    assert_eq!(kld.stderr.matches("have no embedding").count(), 1, "{}", kld.stderr);
    let warnings = kld.json()["warnings"].clone();
    assert_eq!(warnings.as_array().unwrap().len(), 1);
    assert!(warnings[0].as_str().unwrap().contains("\"<pad272>\""), "{warnings}");
    let json = place.run("generate model --prompt x -n 1 --json").success().json();
    assert_eq!(json["warnings"].as_array().unwrap().len(), 1, "{json}");
    // Errors have them as well; this one is the text's, not the tokenizer's.
    let run = place.run("generate model --raw --prompt a<pad272>b --json").failure(2, "<pad272>");
    assert_eq!(run.json()["warnings"].as_array().unwrap().len(), 1);
    let hint = run.json()["error"]["hint"].as_str().unwrap().to_owned();
    assert!(hint.contains("out of the text") && !hint.contains("fetch"), "{hint}");
}

#[test]
fn variables_are_named_in_their_errors_and_empty_means_not_set() {
    let place = Place::new();
    let foreign = if cfg!(target_arch = "x86_64") { "neon-dot" } else { "avx2" };
    for (variable, value) in [
        ("QQQ_ISA", "avx3"),
        ("QQQ_ISA", foreign),
        ("QQQ_THREADS", "many"),
        ("QQQ_THREADS", "0"),
        ("QQQ_THREADS", "5000"),
        ("QQQ_LOG", "dbug"),
        ("QQQ_LOG", "qqq=loud"),
    ] {
        // A float model is not run by those kernels; what was asked for is wrong all the same.
        let run = with(&place, &[(variable, value)], "inspect model --summary --json").failure(2, variable);
        assert!(run.json()["error"]["message"].as_str().unwrap().starts_with(&format!("{variable}: ")));
        assert!(run.stderr.contains(value), "{}", run.stderr);
        with(&place, &[(variable, "")], "inspect model --summary").success();
    }
    with(&place, &[("QQQ_THREADS", "5000")], "inspect model --summary --threads 1").success();
    place.run("inspect model --threads 5000").failure(2, "--threads: ");
}

#[test]
fn colours_are_as_the_variables_say() {
    let place = Place::new();
    // Our own error, and clap's.
    for line in ["inspect ./nowhere", "inspect"] {
        for (variables, coloured) in [
            (&[][..], false),
            (&[("CLICOLOR_FORCE", "1")][..], true),
            (&[("CLICOLOR_FORCE", "0")][..], false),
            (&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")][..], false),
            (&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "")][..], true),
        ] {
            let stderr = with(&place, variables, line).stderr;
            assert_eq!(stderr.contains("\u{1b}["), coloured, "{line}, {variables:?}: {stderr:?}");
            assert!(coloured || stderr.starts_with("error: "), "{stderr:?}");
        }
    }
    // The object has none of it.
    let run = with(&place, &[("CLICOLOR_FORCE", "1")], "inspect --json");
    assert!(run.stderr.contains("\u{1b}[") && !run.stdout.contains("\\u001b"), "{}", run.stdout);
}

#[test]
fn devices_are_asked_for() {
    let place = Place::new();
    fs::create_dir(place.path("kept")).unwrap();
    place
        .run("demo --model model --device cuda:0")
        .failure(2, "--device cuda:0: this command computes on the CPU alone");
    for line in ["quantize model -o out", "demo --model model"] {
        place.run(&format!("{line} --device abacus")).failure(2, "'abacus'");
    }
    for line in [
        "quantize model -o out",
        "quantize model --dry-run",
        "generate model --prompt x",
        "chat model",
        "eval perplexity model --text text.txt",
        "eval kld model --baseline model --text text.txt",
        "bench model model",
    ] {
        // There are not so many anywhere.
        let run = place.run(&format!("{line} --device cuda:999")).failure(1, "--device cuda:999: ");
        assert!(run.stderr.contains("--device cpu"), "{}", run.stderr);
        place
            .run(&format!("{line} --device mps"))
            .failure(2, "--device mps: models run on CPUs (--device cpu)");
        place.run(&format!("{line} --device abacus")).failure(2, "'abacus'");
    }
    let json = |device: &str| {
        place.run(&format!("generate model --prompt x -n 3 --json {device}")).success().json()["tokens"]
            .clone()
    };
    assert_eq!(json("--device cpu"), json(""));
    assert_eq!(json("--device auto"), json(""));
}

#[test]
fn one_prompt_has_no_number() {
    let place = Place::new();
    let run = place.run(&format!("generate model --raw --prompt {}", "x".repeat(3000)));
    run.failure(2, "error: the prompt has 3000 tokens;");
}

#[test]
fn options_that_would_do_nothing_are_refused() {
    let place = Place::new();
    for (options, says) in [
        ("--transform smooth --rotation hadamard", "--rotation does nothing"),
        ("--method rtn --damping 0.01", "--damping does nothing"),
        ("--text-field body", "--text-field does nothing without a text"),
        ("--calibration self --text-format json", "--text-format does nothing without a text"),
        ("--calibration text.txt --text-format plain --text-field body", "plain text has no fields"),
        ("--calibration text.txt --text-field body", "plain text, which has no fields"),
        ("--revision main", "--revision main does nothing with model, which is not from the hub"),
    ] {
        place.run(&format!("quantize model -o out {options}")).failure(2, says);
    }
    place
        .run("eval perplexity model --text text.txt --text-format plain --text-field body")
        .failure(2, "plain text has no fields");
    place
        .run("eval perplexity model --text text.txt --text-field body")
        .failure(2, "--text-field body does nothing here: the text is plain text");
    for command in ["generate model --prompt a", "chat model", "inspect model", "bench model model"] {
        place.run(&format!("{command} --revision v1")).failure(2, "--revision v1 does nothing with model");
    }
    place
        .run("eval kld model --baseline ./model --text text.txt --revision v1")
        .failure(2, "--revision v1 does nothing with model and ./model, which are not from the hub");
    assert_eq!(place.names(), ["model", "text.txt"]);
}

#[test]
fn proposed_commands_can_be_pasted() {
    let place = Place::new();
    fs::rename(place.path("model"), place.path("my model")).unwrap();
    let mut command = place.command();
    command.args(["quantize", "my model", "-o", "it's $HOME", "--windows", "2", "--window", "64"]);
    let run = Run::of(command.output().unwrap()).success();
    let next = run.stdout.split("Next:\n").nth(1).expect("what to do next");
    let inspect = next.lines().next().unwrap().trim();
    assert!(next.contains("--baseline 'my model'"), "{next}");
    // As a shell reads it.
    let binary = env!("CARGO_BIN_EXE_qqq");
    let output = Command::new("sh")
        .args(["-c", &inspect.replacen("qqq", binary, 1)])
        .current_dir(place.path(""))
        .output()
        .unwrap();
    assert!(Run::of(output).success().stdout.contains("W4A8"));
}

#[test]
fn a_text_is_read_once() {
    if !cfg!(unix) {
        return;
    }
    let place = Place::new();
    place.quantize("out", "");
    // Of several pieces, but not all of them.
    let text = common::TEXT.repeat(40);
    fs::write(place.path("text.txt"), &text).unwrap();
    let line = "eval kld out --baseline model --window 256 --limit 40 --json --text";
    let whole = place.run(&format!("{line} text.txt")).success().json();
    // Through a pipe there is nothing to read a second time.
    let mut child = place
        .command()
        .args(format!("{line} /dev/stdin").split(' '))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Who has read enough reads no further.
    let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
    let piped = Run::of(child.wait_with_output().unwrap()).success().json();
    assert_eq!(piped["kl_divergence"], whole["kl_divergence"]);
    assert_eq!(piped["text"]["sha256"], Value::Null);
    // The name is that of the whole file, however little of it is scored.
    let few = place.run(&format!("{line} text.txt --limit 1")).success().json();
    assert_eq!((&few["windows"], &few["text"]), (&json!(1), &whole["text"]));
}

#[test]
fn figures_are_the_same_in_the_table_and_in_json() {
    let place = Place::new();
    place.quantize("out", "");
    for line in [
        "eval perplexity model --text text.txt --window 256",
        "eval perplexity model --text text.txt --window 256 --limit 1",
        "eval kld out --baseline model --text text.txt --window 256",
    ] {
        let json = place.run(&format!("{line} --json")).success().json();
        let table = place.run(line).success().stdout;
        for (name, figure) in json["shown"].as_object().unwrap() {
            assert!(table.contains(figure.as_str().unwrap()), "{name}: {figure} is not in {table}");
        }
        assert!(!table.contains("+-"), "{table}");
    }
}

/// Ctrl-C after some windows or runs: what was measured until then, marked as a part.
#[cfg(unix)]
#[test]
fn an_interrupted_measurement_tells_what_it_has() {
    let place = Place::new();
    fs::write(place.path("long.txt"), common::TEXT.repeat(120)).unwrap();
    for (line, figure) in [
        ("eval perplexity model --text long.txt --window 2048", "perplexity"),
        ("eval kld model --baseline model --text long.txt --window 2048", "kl_divergence"),
        ("bench model model --prompt-tokens 8 --new-tokens 8 --repeat 10000", ""),
    ] {
        for json in [true, false] {
            let run = place.interrupted(&format!("{line}{}", if json { " --json" } else { "" }));
            assert_eq!(run.code, Some(130), "{}", run.stderr);
            assert!(run.stderr.contains("error: interrupted"), "{}", run.stderr);
            assert!(run.stderr.contains("Ctrl-C again ends at once"), "{}", run.stderr);
            if json && figure.is_empty() {
                let outcome = run.json();
                let repeat = outcome["results"][0]["repeat"].as_u64().unwrap();
                assert!((1..10_000).contains(&repeat) && outcome["partial"] == true, "{outcome}");
            } else if json {
                let outcome = run.json();
                let (windows, planned) = (outcome["windows"].as_u64(), outcome["planned_windows"].as_u64());
                assert!(windows >= Some(1) && windows < planned, "{outcome}");
                assert_eq!(outcome["partial"], true);
                let limit = format!("{line} --json --limit {}", windows.unwrap());
                let whole = place.run(&limit).success().json();
                assert_eq!((&whole[figure], &whole["partial"]), (&outcome[figure], &json!(false)));
            } else {
                assert!(run.stdout.contains("PARTIAL, interrupted: "), "{}", run.stdout);
            }
        }
    }
}
