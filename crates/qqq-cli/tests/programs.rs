//! What other programs make of it: shells of the completion scripts, groff of the manual, a terminal of the colours.

mod common;

use std::{
    io::Write,
    path::Path,
    process::{Command, ExitCode, Output, Stdio},
};

use common::{Place, Run};
use qqq_testing::{Missing, Suite, tests};

fn main() -> ExitCode {
    Suite::new()
        .tests(tests![every_shell_has_a_script, every_command_has_a_page, commands_that_are_none])
        .with(|| program("bash", Missing::Obtainable), tests![bash_completes])
        .with(|| program("zsh", Missing::Machine), tests![zsh_reads_the_script])
        .with(|| program("fish", Missing::Machine), tests![fish_reads_the_script])
        .with(|| program("groff", Missing::Machine), tests![groff_renders_the_pages])
        .with(
            || program("script", Missing::Obtainable),
            tests![a_terminal_has_colours_unless_it_is_asked_not_to],
        )
        .run()
}

/// That a program is there.
fn program(name: &'static str, missing: fn(String) -> Missing) -> Result<&'static str, Missing> {
    match Command::new(name).arg("--version").stdin(Stdio::null()).output() {
        Ok(_) => Ok(name),
        Err(e) => Err(missing(format!("no {name} ({e})"))),
    }
}

fn every_shell_has_a_script() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let script = place.run(&format!("completions {shell}")).success();
        assert_eq!(script.stderr, "");
        for word in ["quantize", "perplexity", "group-scales", "max-new-tokens"] {
            assert!(script.stdout.contains(word), "{shell}: no {word}");
        }
        let json = place.run(&format!("completions {shell} --json")).success().json();
        assert_eq!(json["shell"], shell);
        assert_eq!(json["script"].as_str().unwrap().trim_end(), script.stdout.trim_end());
    }
    place.run("completions tcsh").failure(2, "tcsh");
    // Such a line stands in files that every shell runs when it starts.
    let mut command = place.command();
    command.env("QQQ_THREADS", "no number").env("QQQ_LOG", "no level").args(["completions", "bash"]);
    Run::of(command.output().unwrap()).success();
}

fn bash_completes(bash: &str) {
    let place = Place::new();
    let script = place.run("completions bash").success().stdout;
    std::fs::write(place.path("qqq.bash"), script).unwrap();
    assert!(Command::new(bash).args(["-n"]).arg(place.path("qqq.bash")).status().unwrap().success());
    let completed = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let last = words.len() - 1;
        let commands = format!(
            "source ./qqq.bash; COMP_WORDS=({}); COMP_CWORD={last}; _qqq qqq '{}' '{}'; echo \"${{COMPREPLY[@]}}\"",
            words.iter().map(|w| format!("'{w}'")).collect::<Vec<_>>().join(" "),
            words[last],
            words[last - 1],
        );
        let output = Command::new(bash).args(["-c", &commands]).current_dir(place.path("")).output().unwrap();
        let run = Run::of(output).success();
        run.stdout.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(completed("qqq qua"), ["quantize"]);
    assert_eq!(completed("qqq eval per"), ["perplexity"]);
    assert_eq!(completed("qqq quantize --transf"), ["--transform"]);
    assert_eq!(completed("qqq quantize --transform r"), ["rotate"]);
    assert_eq!(completed("qqq generate --device c"), ["cpu", "cuda", "cuda:N"]);
    assert_eq!(completed("qqq help eval k"), ["kld"]);
}

/// Checks the syntax of a script.
fn parses(shell: &str, extension: &str) {
    let place = Place::new();
    let script = place.run(&format!("completions {shell}")).success().stdout;
    let path = place.path(&format!("qqq.{extension}"));
    std::fs::write(&path, script).unwrap();
    let output = Command::new(shell).arg("-n").arg(&path).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

fn zsh_reads_the_script(zsh: &str) {
    parses(zsh, "zsh");
}

fn fish_reads_the_script(fish: &str) {
    parses(fish, "fish");
}

fn every_command_has_a_page() {
    let place = Place::new();
    let run = place.run("man --output new/man1").success();
    let mut names: Vec<String> = std::fs::read_dir(place.path("new/man1"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        "qqq-bench-gemm.1",
        "qqq-bench-model.1",
        "qqq-bench.1",
        "qqq-chat.1",
        "qqq-compare.1",
        "qqq-completions.1",
        "qqq-convert.1",
        "qqq-demo.1",
        "qqq-doctor.1",
        "qqq-eval-curve.1",
        "qqq-eval-kld.1",
        "qqq-eval-perplexity.1",
        "qqq-eval-tasks.1",
        "qqq-eval.1",
        "qqq-generate.1",
        "qqq-inspect.1",
        "qqq-kernels-build.1",
        "qqq-kernels-list.1",
        "qqq-kernels.1",
        "qqq-man.1",
        "qqq-quantize.1",
        "qqq-rerun.1",
        "qqq-synth.1",
        "qqq.1",
    ];
    assert_eq!(names, expected);
    let mut told: Vec<&str> = run.stdout.lines().map(|l| l.strip_prefix("new/man1/").unwrap()).collect();
    told.sort();
    assert_eq!(told, expected);
    // Again: pages that are there are replaced.
    std::fs::write(place.path("new/man1/qqq.1"), "old").unwrap();
    let pages = place.run("man --output new/man1 --json").success().json()["pages"].clone();
    assert_eq!(pages.as_array().unwrap().len(), expected.len());
    let page = |words: &str| place.run(&format!("man {words}")).success().stdout;
    assert_eq!(page(""), std::fs::read_to_string(place.path("new/man1/qqq.1")).unwrap());
    assert_eq!(page("eval kld"), std::fs::read_to_string(place.path("new/man1/qqq-eval-kld.1")).unwrap());
}

fn commands_that_are_none() {
    let place = Place::new();
    place.run("man frob").failure(2, "qqq has no command \"frob\"");
    place.run("man eval frob").failure(2, "qqq eval has no command \"frob\"");
    place.run("man chat x").failure(2, "qqq chat has no command \"x\"");
    place.run("man chat --output pages").failure(2, "cannot be used with");
    place.run("man --output text.txt").failure(1, "--output text.txt");
    assert_eq!(place.names(), ["model", "text.txt"]);
}

fn rendered(groff: &str, page: &Path) -> Output {
    Command::new(groff)
        .args(["-man", "-Tutf8", "-P-c", "-P-b", "-P-o", "-P-u", "-ww", "-rLL=100n"])
        .arg(page)
        .output()
        .unwrap()
}

fn groff_renders_the_pages(groff: &str) {
    let place = Place::new();
    place.run("man --output pages").success();
    for entry in std::fs::read_dir(place.path("pages")).unwrap() {
        let path = entry.unwrap().path();
        let output = rendered(groff, &path);
        let text = String::from_utf8(output.stdout).unwrap();
        std::io::stderr().write_all(&output.stderr).unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{}", path.display());
        for heading in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"] {
            assert!(text.lines().any(|l| l.contains(heading)), "{}: no {heading}", path.display());
        }
        assert!(text.contains("--threads"), "{}", path.display());
    }
    let text = String::from_utf8(rendered(groff, &place.path("pages/qqq-eval-perplexity.1")).stdout).unwrap();
    // Lines of examples stay lines.
    let example = text.lines().find(|l| l.contains("--window 2048 --stride 512")).unwrap();
    assert!(!example.contains("llama-perplexity") && text.contains("EXAMPLES"), "{text}");
}

fn a_terminal_has_colours_unless_it_is_asked_not_to(script: &str) {
    let place = Place::new();
    let on_terminal = |variables: &[(&str, &str)], line: &str| {
        let mut command = Command::new(script);
        common::clean(&mut command);
        command.current_dir(place.path("")).env("TERM", "xterm").envs(variables.iter().copied());
        command.args(["-qec", &format!("{} {line}", env!("CARGO_BIN_EXE_qqq")), "/dev/null"]);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    // Our own error, and clap's.
    for line in ["inspect ./nowhere", "inspect"] {
        assert!(on_terminal(&[], line).contains("\u{1b}["), "{line}");
        for variable in [("NO_COLOR", "1"), ("CLICOLOR", "0"), ("TERM", "dumb")] {
            let shown = on_terminal(&[variable], line);
            assert!(
                shown.contains("error: ") && !shown.contains('\u{1b}'),
                "{line}, {variable:?}: {shown:?}"
            );
        }
    }
}
