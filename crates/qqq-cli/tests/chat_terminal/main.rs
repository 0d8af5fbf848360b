//! `qqq chat` on a terminal.
#![cfg(unix)]

#[path = "../common/mod.rs"]
mod common;
mod terminal;

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use common::{Place, TinyModel};
use rustix::process::Signal;
use terminal::Terminal;

/// A model that answers in two letters, one token a byte.
struct Chat {
    place: Place,
}

impl Chat {
    fn new() -> Self {
        let place = Place::new();
        TinyModel::new().that_says(b"ab").with_context(16_384).write(&place.path("model"));
        Self { place }
    }

    fn history(&self) -> PathBuf {
        self.place.path("state").join("qqq").join("chat-history")
    }

    /// Starts a chat with answers of `new` tokens, and waits for its prompt.
    fn start(&self, new: usize, options: &[&str], rows: u16, columns: u16) -> Terminal {
        let mut command = self.place.command();
        command.args(["chat", "model", "--temperature", "0", "-n", &new.to_string()]).args(options);
        command.env("XDG_STATE_HOME", self.place.path("state"));
        let mut terminal = Terminal::run(&mut command, rows, columns);
        terminal.wait_for_prompt();
        terminal
    }

    fn plain(&self) -> Terminal {
        self.start(3, &[], 40, 120)
    }
}

/// Waits for the statistics of an answer; gives the number of bytes of the conversation before it.
#[track_caller]
fn answered(terminal: &mut Terminal) -> usize {
    terminal.wait_for("[prompt: ");
    let number = terminal.wait_for(" tokens");
    terminal.wait_for("]");
    terminal.wait_for_prompt();
    number.trim_end_matches(" tokens").parse().unwrap()
}

/// Bytes of a conversation that begins with this message, as the template has it.
fn said(message: &str) -> usize {
    format!("user: {message}\nassistant: ").len()
}

#[test]
fn a_paste_of_ten_thousand_bytes_is_one_message() {
    let chat = Chat::new();
    let mut terminal = chat.plain();
    let line = |i: usize| format!("line {i}: naïve 漢字 \t {}\n", "x".repeat(i % 60));
    let text: String = (0..)
        .map(line)
        .scan(0, |n, l| {
            (*n < 10_000).then(|| {
                *n += l.len();
                l
            })
        })
        .collect();
    let text = text.trim_end();
    assert!(text.len() >= 10_000);
    terminal.paste(text);
    let last = text.lines().last().unwrap().split('\t').next().unwrap().trim().to_owned();
    terminal.wait_until("the end of the paste", |screen| screen.contains(&last));
    terminal.type_in("\r");
    assert_eq!(answered(&mut terminal), said(text));
    // It can be had again, as a whole.
    terminal.type_in("/reset\r");
    terminal.wait_for("2 messages is forgotten)");
    terminal.wait_for_prompt();
    terminal.type_in("\x1b[A\x1b[A");
    terminal.wait_until("the paste again", |screen| screen.contains("line "));
    terminal.type_in("\r");
    assert_eq!(answered(&mut terminal), said(text));
}

#[test]
fn what_is_pasted_during_an_answer_is_the_next_message() {
    let chat = Chat::new();
    let mut terminal = chat.start(3000, &[], 40, 120);
    terminal.type_in("Hello\r");
    terminal.wait_for("aa");
    let text = format!("{}\n{}", "y".repeat(4_000), "z".repeat(2_000));
    terminal.paste(&text);
    terminal.type_in("\r");
    let answer = terminal.wait_for("[prompt: ");
    assert!(!answer.contains('y'), "what is typed does not show in the answer");
    terminal.wait_for("]");
    terminal.wait_for("[prompt: ");
    let tokens: usize = terminal.wait_for(" ").trim().parse().unwrap();
    assert_eq!(tokens, said("Hello") + 3000 + "\n".len() + said(&text));
}

#[test]
fn keys_edit_the_message() {
    let chat = Chat::new();
    let mut terminal = chat.plain();
    // Ctrl-A, Ctrl-E, arrows, backspace.
    terminal.type_in("ello\x01H\x05 worlds\x1b[D\x1b[D\x1b[C\x7f\r");
    assert_eq!(answered(&mut terminal), said("Hello worls"));
    let shown = terminal.screen();
    assert!(shown.contains("> Hello worls"), "{shown}");
    // Lines by Alt-Enter and Ctrl-J.
    terminal.type_in("/reset\r");
    terminal.wait_for_prompt();
    terminal.type_in("one\x1b\rtwo\x0athree\r");
    assert_eq!(answered(&mut terminal), said("one\ntwo\nthree"));
}

#[test]
fn wide_characters_in_a_narrow_terminal() {
    let chat = Chat::new();
    let mut terminal = chat.start(3, &["-q"], 30, 11);
    let text = "漢字かな交じり文é👍🏽e";
    terminal.type_in(text);
    terminal.wait_until("all typed", |screen| screen.ends_with('e'));
    // Four columns of characters a row after the prompt, five in the next.
    assert!(terminal.screen().starts_with("> 漢字かな\n交じり文é"), "{}", terminal.screen());
    terminal.type_in("\x1b[D\x7f\x7f\x7f\x05!\r");
    terminal.wait_for("\n");
    terminal.wait_for_prompt();
    terminal.type_in("/exit\r");
    assert_eq!(terminal.wait_for_end(), Some(0));
    let kept = fs::read_to_string(chat.history()).unwrap();
    assert_eq!(kept, "漢字かな交じりe!\n/exit\n");
}

#[test]
fn ctrl_c_stops_the_answer_alone() {
    let chat = Chat::new();
    let mut terminal = chat.start(16_000, &[], 40, 120);
    terminal.type_in("Hello\r");
    terminal.wait_for("aa");
    terminal.type_in("\x03");
    terminal.wait_for("; stopped]");
    terminal.wait_for_prompt();
    // The chat goes on, with what there was of the answer.
    terminal.type_in("Again\r");
    terminal.wait_for("aa");
    terminal.type_in("\x03");
    terminal.wait_for("[prompt: ");
    let tokens: usize = terminal.wait_for(" ").trim().parse().unwrap();
    assert!(tokens > said("Hello") + said("Again"));
    terminal.wait_for("; stopped]");
    terminal.wait_for_prompt();
    terminal.type_in("\x04");
    assert_eq!(terminal.wait_for_end(), Some(0));
    assert!(terminal.is_ordinary());
}

#[test]
fn ctrl_c_at_the_prompt_clears_the_line_and_twice_leaves() {
    let chat = Chat::new();
    let mut terminal = chat.plain();
    for _ in 0..2 {
        // Something is typed in between: not twice.
        terminal.type_in("not meant\x03");
        terminal.wait_for("(Ctrl-C again leaves");
        terminal.wait_for_prompt();
    }
    terminal.type_in("meant\r");
    assert_eq!(answered(&mut terminal), said("meant"));
    terminal.type_in("dropped\x03");
    terminal.wait_for("(Ctrl-C again leaves");
    terminal.type_in("\x03");
    assert_eq!(terminal.wait_for_end(), Some(0));
    assert!(terminal.is_ordinary());
    assert!(terminal.raw.ends_with(b"\x1b[?2004l"), "pastes are no longer marked");
    assert_eq!(fs::read_to_string(chat.history()).unwrap(), "meant\n");
}

/// Whether it stops the answer, comes behind it, or is a key of the next prompt: the chat goes on.
#[test]
fn ctrl_c_at_the_end_of_an_answer_never_ends_the_chat() {
    let chat = Chat::new();
    let mut terminal = chat.plain();
    for _ in 0..20 {
        terminal.type_in("Hello\r");
        terminal.wait_for("a");
        terminal.type_in("\x03");
        // Keys that come at once after such a key are dropped with the line.
        terminal.type_until("x", |screen| screen.lines().last().is_some_and(|line| line.starts_with("> x")));
        terminal.type_in("\x15");
        terminal.wait_for_prompt();
        terminal.type_in("/reset\r");
        terminal.wait_for("is forgotten)");
        terminal.wait_for_prompt();
    }
    terminal.type_in("/exit\r");
    assert_eq!(terminal.wait_for_end(), Some(0));
    assert!(terminal.is_ordinary());
}

#[test]
fn messages_are_kept_for_the_next_chat() {
    let chat = Chat::new();
    let mut terminal = chat.plain();
    terminal.type_in(" a secret\r");
    answered(&mut terminal);
    terminal.type_in("a\x0ab < > <\\n\r");
    answered(&mut terminal);
    // Not asked to leave: it is written already.
    terminal.signal(Signal::KILL);
    terminal.wait_for_end();
    assert!(!fs::read_to_string(chat.history()).unwrap().contains("secret"));
    assert_eq!(fs::metadata(chat.history()).unwrap().permissions().mode() & 0o777, 0o600);
    let mut terminal = chat.plain();
    terminal.type_in("\x1b[A");
    terminal.wait_until("the message", |screen| screen.contains("> a\n"));
    terminal.type_in("\r");
    assert_eq!(answered(&mut terminal), said("a\nb < > <\\n"));

    let chat = Chat::new();
    let mut terminal = chat.start(3, &["--no-history"], 40, 120);
    terminal.type_in("Hello\r");
    assert_eq!(answered(&mut terminal), said("Hello"));
    terminal.type_in("\x1b[A\r");
    let again = answered(&mut terminal);
    assert!(again > said("Hello") + said("Hello"), "of this chat it is there all the same");
    assert!(!chat.history().exists());
}

#[test]
fn a_history_that_cannot_be_kept_is_told() {
    let chat = Chat::new();
    fs::create_dir_all(chat.history()).unwrap();
    let mut terminal = chat.plain();
    assert!(String::from_utf8_lossy(&terminal.raw).contains("messages are not kept"));
    terminal.type_in("Hello\r");
    assert_eq!(answered(&mut terminal), said("Hello"));
}

#[test]
fn a_signal_at_the_prompt_leaves_the_terminal_as_it_was() {
    let chat = Chat::new();
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let mut terminal = chat.plain();
        terminal.type_in("half a mess");
        terminal.wait_for("half a mess");
        assert!(!terminal.is_ordinary());
        terminal.signal(signal);
        assert_eq!(terminal.wait_for_end(), Some(130));
        assert!(terminal.is_ordinary(), "{signal:?}");
        assert!(String::from_utf8_lossy(&terminal.raw).contains("\x1b[?2004l\r\n"));
    }
}

#[test]
fn an_error_leaves_the_terminal_as_it_was() {
    let chat = Chat::new();
    fs::remove_file(chat.place.path("model").join("model.safetensors")).unwrap();
    let mut command = chat.place.command();
    command.args(["chat", "model", "--no-history"]);
    let mut terminal = Terminal::run(&mut command, 40, 120);
    assert_eq!(terminal.wait_for_end(), Some(2));
    assert!(terminal.is_ordinary());
    assert!(terminal.screen().contains("error: "), "{}", terminal.screen());
}

/// Modes as `stty` names them, where the shell's own line editor cannot be asked.
#[test]
fn ctrl_z_gives_the_terminal_to_the_shell_and_fg_back_to_the_chat() {
    let chat = Chat::new();
    let command = chat.place.command();
    let qqq = command.get_program().to_owned();
    let mut shell = std::process::Command::new("sh");
    common::clean(&mut shell);
    shell.arg("-i").current_dir(chat.place.path("")).env("PS1", "$ ").env("ENV", "");
    shell.env("QQQ", qqq).env("QQQ_HISTORY", "/dev/null");
    let mut terminal = Terminal::run(&mut shell, 40, 120);
    terminal.wait_for("$ ");
    terminal.type_in("$QQQ chat model -n 12000 --temperature 0\r");
    terminal.wait_for_prompt();
    let shell_is_served = |terminal: &mut Terminal| {
        terminal.wait_for("topped");
        terminal.wait_for("$ ");
        terminal.type_in("stty -a\r");
        let shown = terminal.wait_for("$ ");
        let modes: Vec<&str> = shown.split_whitespace().collect();
        for mode in ["icanon", "echo", "isig", "icrnl", "opost"] {
            assert!(modes.contains(&mode), "{mode}: {shown}");
        }
    };
    terminal.type_in("half ");
    terminal.wait_for("half ");
    terminal.type_in("\x1a");
    shell_is_served(&mut terminal);
    terminal.type_in("fg\r");
    terminal.wait_for("> half ");
    terminal.type_in("said\r");
    terminal.wait_for("aa");
    terminal.type_in("\x1a");
    shell_is_served(&mut terminal);
    terminal.type_in("fg\r");
    terminal.wait_for("\x1b[?2004h");
    assert!(!terminal.is_ordinary());
    terminal.type_in("\x03");
    terminal.wait_for("; stopped]");
    terminal.wait_for_prompt();
    terminal.type_in("\x04");
    terminal.wait_for("$ ");
    terminal.type_in("exit\r");
    assert_eq!(terminal.wait_for_end(), Some(0));
}

#[test]
fn a_line_that_a_terminal_has_cut_is_left_out() {
    let chat = Chat::new();
    let command = chat.place.command();
    let mut shell = std::process::Command::new("sh");
    common::clean(&mut shell);
    shell.current_dir(chat.place.path("")).env("QQQ", command.get_program());
    // Without the editor, which draws where answers do not go to a terminal.
    shell.args(["-c", "$QQQ chat model -n 3 --temperature 0 | tr a-z A-Z"]);
    let mut terminal = Terminal::run(&mut shell, 40, 120);
    terminal.type_in("Hello\r");
    terminal.wait_for("length limit]");
    terminal.type_in(format!("{}\r", "x".repeat(5000)));
    terminal.wait_for("this line is left out: a terminal cuts lines at 4095 bytes");
    terminal.type_in("Again\r");
    terminal.wait_for("[prompt: ");
    let tokens: usize = terminal.wait_for(" ").trim().parse().unwrap();
    assert_eq!(tokens, said("Hello") + 3 + "\n".len() + said("Again"));
    terminal.type_in("\x04");
    terminal.wait_for_end();
}

#[test]
fn nothing_is_coloured() {
    let chat = Chat::new();
    let mut terminal = chat.plain();
    terminal.paste("some\ntext");
    terminal.type_in("\r");
    answered(&mut terminal);
    terminal.type_in("/help\r");
    terminal.wait_for("Ctrl-Z");
    terminal.wait_for_prompt();
    terminal.type_in("\x03\x03");
    terminal.wait_for_end();
    let raw = String::from_utf8_lossy(&terminal.raw).into_owned();
    let styles: Vec<&str> =
        raw.split("\x1b[").skip(1).filter_map(|s| s.split_once('m')).map(|(style, _)| style).collect();
    let is_style = |s: &&&str| s.chars().all(|c| c.is_ascii_digit() || c == ';') && !matches!(**s, "0" | "");
    assert_eq!(styles.iter().find(is_style), None);
}

/// What a model says is shown, not obeyed; where it is no terminal that gets it, it is as it is.
#[test]
fn control_characters_of_an_answer_are_shown() {
    let place = Place::new();
    TinyModel::new().that_says(b"\x1b[").write(&place.path("model"));
    let command = |options: &[&str]| {
        let mut command = place.command();
        command.args(["-q", "generate", "model", "-n", "40", "--prompt", "Hello"]).args(options);
        command
    };
    let piped = common::Run::of(command(&[]).output().unwrap()).success().stdout;
    assert!(piped.contains('\x1b'), "{piped:?}");
    let shown = piped.replace('\x1b', "^[");
    let mut terminal = Terminal::run(&mut command(&[]), 10, 120);
    assert_eq!(terminal.wait_for_end(), Some(0));
    assert_eq!(String::from_utf8_lossy(&terminal.raw), shown.replace('\n', "\r\n"));
    // Nor in an error.
    let missing = place.path("\x1b[31mmodel");
    let mut failing = place.command();
    failing.env("NO_COLOR", "1").arg("inspect").arg(missing);
    let mut terminal = Terminal::run(&mut failing, 10, 200);
    assert_eq!(terminal.wait_for_end(), Some(2));
    let raw = String::from_utf8_lossy(&terminal.raw);
    assert!(!raw.contains('\x1b') && raw.contains("^[[31mmodel"), "{raw}");
}
