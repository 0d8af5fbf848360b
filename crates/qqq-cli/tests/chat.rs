//! `qqq chat` with messages that cannot be answered: it says so and goes on.

mod common;

use std::io::Write;
use std::process::Stdio;

use common::{Place, Run, TinyModel};

/// A chat with a template, on lines of input.
fn chat(template: &str, lines: &[u8]) -> Run {
    chat_that_may_fail(template, lines).success()
}

fn chat_that_may_fail(template: &str, lines: &[u8]) -> Run {
    let place = Place::new();
    let alone = place.path("model").join("chat_template.jinja");
    std::fs::write(alone, template).unwrap();
    let mut child = place
        .command()
        .args(["chat", "model", "-n", "2", "--temperature", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines).unwrap();
    Run::of(child.wait_with_output().unwrap())
}

/// Numbers of tokens of the prompts that were answered.
fn prompts(run: &Run) -> Vec<usize> {
    let numbers = run.stderr.lines().filter_map(|l| l.strip_prefix("[prompt: ")?.split(' ').next());
    numbers.map(|n| n.parse().unwrap()).collect()
}

const TEMPLATE: &str = "{% for m in messages %}\
    {% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
    {% if 'secret' in m.content %}{{ raise_exception('not that') }}{% endif %}\
    {{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";

#[test]
fn a_refused_message_is_left_out() {
    let run = chat(TEMPLATE, b"Hello\nthe secret\nHello\n/reset\nHello\n");
    assert!(run.stderr.contains("not that"), "{}", run.stderr);
    assert!(run.stderr.contains("left out of the conversation"), "{}", run.stderr);
    let plain = prompts(&chat(TEMPLATE, b"Hello\nHello\n/reset\nHello\n"));
    assert_eq!(prompts(&run), plain);
    assert_eq!(plain.len(), 3);
}

#[test]
fn a_refused_system_message_is_named() {
    let run = chat(TEMPLATE, b"/system Be brief.\nHello\n/system\nHello\n");
    assert!(run.stderr.contains("System role not supported"), "{}", run.stderr);
    assert!(run.stderr.contains("/system without a text removes it"), "{}", run.stderr);
    assert_eq!(prompts(&run), prompts(&chat(TEMPLATE, b"Hello\n")));
}

#[test]
fn a_template_that_fails_is_told_for_each_message() {
    let run = chat_that_may_fail("{{ messages[0].content.nosuch() }}", b"Hello\nAgain\n");
    let run = run.failure(1, "no message has an answer");
    assert_eq!(run.stderr.matches("has no attribute 'nosuch'").count(), 2, "{}", run.stderr);
    assert!(prompts(&run).is_empty());
}

#[test]
fn a_line_that_is_no_text_is_left_out() {
    let run = chat(TEMPLATE, b"Hello\n\xff\xfe\ncaf\xe9\nHello\n");
    assert!(run.stderr.contains("not UTF-8 (byte 1 is 0xff)"), "{}", run.stderr);
    assert!(run.stderr.contains("not UTF-8 (byte 4 is 0xe9)"), "{}", run.stderr);
    assert_eq!(prompts(&run), prompts(&chat(TEMPLATE, b"Hello\nHello\n")));
}

#[test]
fn commands_say_what_they_did() {
    let run = chat(TEMPLATE, b"/reset\nHello\n/reset\n/system Be brief.\n/system\n/system\n/help\n/halp\n");
    for said in [
        "(there was no conversation yet)",
        "(the conversation of 2 messages is forgotten)",
        "(the system message is set; the conversation begins anew)",
        "(the system message is removed; the conversation begins anew)",
        "(there is no system message; the conversation begins anew)",
        "/system TEXT  set the system message",
        "(/halp is unknown, /help tells what there is",
    ] {
        assert!(run.stderr.contains(said), "{said:?} is not in {}", run.stderr);
    }
    assert_eq!(prompts(&run).len(), 1);
}

#[test]
fn what_only_begins_as_a_command_is_a_message() {
    let entered = "/exit codes of bash\n /exit\n/help me\n/reset it\n\t/reset\n";
    let run = chat(TEMPLATE, entered.as_bytes());
    assert_eq!(prompts(&run).len(), 5, "{}", run.stderr);
    assert_eq!(prompts(&run)[0], "user: /exit codes of bash\nassistant: ".len());
    assert_eq!(prompts(&chat(TEMPLATE, b"/exit \nHello\n")).len(), 0);
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_message() {
    let run = chat(TEMPLATE, b"\xEF\xBB\xBFHello\n");
    assert_eq!(prompts(&run), prompts(&chat(TEMPLATE, b"Hello\n")));
    let run = chat(TEMPLATE, b"\xEF\xBB\xBF/reset\n");
    assert!(run.stderr.contains("(there was no conversation yet)"), "{}", run.stderr);
}

#[test]
fn lines_of_a_pipe_are_not_cut() {
    let long = "x".repeat(1500);
    let run = chat(TEMPLATE, format!("{long}\n").as_bytes());
    assert_eq!(prompts(&run), ["user: \nassistant: ".len() + long.len()]);
}

#[test]
fn answers_end_before_stop_strings_too() {
    let place = Place::new();
    TinyModel::new().that_says(b"ab").write(&place.path("model"));
    let answer = |stop: &[&str]| {
        let mut child = place
            .command()
            .args(["chat", "model", "-n", "60", "--temperature", "0.9", "--top-k", "1"])
            .args(stop)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"Hello\nHello\n").unwrap();
        Run::of(child.wait_with_output().unwrap()).success()
    };
    let free = answer(&[]);
    let first = free.stdout.lines().next().unwrap();
    let stop = &first[first.len() - 8..];
    let stopped = answer(&["--stop", "???", "--stop", stop]);
    let before = first.split(stop).next().unwrap();
    assert_eq!(stopped.stdout.lines().next().unwrap(), before);
    let mut statistics = stopped.stderr.lines().filter(|l| l.starts_with("[prompt: "));
    assert!(statistics.next().unwrap().ends_with("; stop string]"), "{}", stopped.stderr);
    // The conversation goes on from what was printed.
    let hello = "user: Hello\nassistant: ".len();
    assert_eq!(prompts(&stopped), [hello, hello + before.len() + "\n".len() + hello]);
}
