//! `qqq man`.

use std::{io::Write, path::PathBuf};

use anyhow::Context;
use clap::{Command, builder::StyledStr};
use clap_mangen::{
    Man,
    roff::{Roff, roman},
};
use serde::Serialize;

use crate::{app, console::Console, errors::bad_input_hint, files};

const AFTER_HELP: &str = "\
Examples:
  qqq man | man -l -                                  # this program's page
  qqq man eval kld | man -l -                         # that of a command
  qqq man --output ~/.local/share/man/man1            # all pages, for `man qqq-eval-kld`";

/// Manual pages in roff: one on standard output, or all in a directory
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct ManArgs {
    /// Command whose page is wanted [default: qqq as a whole]
    #[arg(value_name = "COMMAND", conflicts_with = "output")]
    command: Vec<String>,
    /// Write the pages of all commands into this directory, which is made if it is not there; pages that are there are
    /// replaced
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// A manual page.
#[derive(Serialize)]
struct Page {
    name: String,
    /// Where it was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    /// Its text, if it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    roff: Option<String>,
}

#[derive(Serialize)]
struct Outcome {
    pages: Vec<Page>,
}

/// Runs the command.
pub fn run(args: &ManArgs, console: &Console) -> anyhow::Result<()> {
    // `qqq help COMMAND` has no page of its own; then all know their whole names.
    let mut root = app::command().disable_help_subcommand(true);
    root.build();
    let pages = match &args.output {
        None => {
            let command = find(&root, &args.command)?;
            vec![Page { name: file_name(command), path: None, roff: Some(page(command)?) }]
        }
        Some(folder) => {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("--output {}: it cannot be made", folder.display()))?;
            let mut commands = Vec::new();
            collect(&root, &mut commands);
            let write = |command: &&Command| {
                let (name, text) = (file_name(command), page(command)?);
                let path = folder.join(&name);
                files::write(&path, |file| file.write_all(text.as_bytes()))?;
                anyhow::Ok(Page { name, path: Some(path), roff: None })
            };
            commands.iter().map(write).collect::<anyhow::Result<_>>()?
        }
    };
    console.result(&Outcome { pages }, |o| {
        let line = |p: &Page| match (&p.roff, &p.path) {
            (Some(roff), _) => roff.clone(),
            (None, path) => path.iter().map(|p| format!("{}\n", p.display())).collect(),
        };
        o.pages.iter().map(line).collect()
    })
}

/// A command by its words.
fn find<'c>(root: &'c Command, words: &[String]) -> anyhow::Result<&'c Command> {
    words.iter().try_fold(root, |command, word| {
        command.find_subcommand(word).ok_or_else(|| {
            let name = command.get_bin_name().unwrap_or_default();
            let there: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
            let hint = match there.is_empty() {
                true => format!("{name} has no commands: `qqq man` gives its options in the page of {name}"),
                false => format!("the commands of {name} are {}", there.join(", ")),
            };
            bad_input_hint(format!("{name} has no command {word:?}"), hint)
        })
    })
}

/// A command and all below it.
fn collect<'c>(command: &'c Command, all: &mut Vec<&'c Command>) {
    all.push(command);
    command.get_subcommands().for_each(|c| collect(c, all));
}

fn file_name(command: &Command) -> String {
    format!("{}.1", command.get_display_name().unwrap_or_else(|| command.get_name()))
}

/// How the library tells old roffs what an apostrophe is.
const PREAMBLE: &str = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";

/// The page of a command: what clap knows, then the sections of what its help ends with.
fn page(command: &Command) -> anyhow::Result<String> {
    let man = Man::new(command.clone())
        // None: a build has no date that would be the same tomorrow. Left empty, the next word would take its place.
        .date(" ")
        .source(format!("qqq {}", env!("CARGO_PKG_VERSION")))
        .manual("qqq manual".to_owned());
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    if let Some(help) = command.get_after_help() {
        sections(help).to_writer(&mut text)?;
    }
    let text = String::from_utf8(text)?;
    // Every part begins with it; once is enough.
    Ok(match text.strip_prefix(PREAMBLE) {
        Some(rest) => format!("{PREAMBLE}{}", rest.replace(PREAMBLE, "")),
        None => text,
    })
}

/// Paragraphs whose first line ends with a colon are sections of that name, whose lines stay as they are; the others are
/// notes.
fn sections(help: &StyledStr) -> Roff {
    let text = help.to_string();
    let add = |roff: &mut Roff, lines: &str| {
        for line in lines.lines() {
            roff.text([roman(line)]);
        }
    };
    let mut roff = Roff::new();
    let mut in_notes = false;
    for paragraph in text.split("\n\n") {
        match paragraph.split_once('\n') {
            Some((title, lines)) if title.ends_with(':') => {
                in_notes = false;
                roff.control("SH", [title.trim_end_matches(':').to_uppercase().as_str()]);
                roff.control("nf", []);
                add(&mut roff, lines);
                roff.control("fi", []);
            }
            _ => {
                match std::mem::replace(&mut in_notes, true) {
                    true => roff.control("PP", []),
                    false => roff.control("SH", ["NOTES"]),
                };
                add(&mut roff, paragraph);
            }
        }
    }
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_help_ends_with_becomes_sections() {
        let help = StyledStr::from("Examples:\n  qqq x\n  qqq y\n\nOne paragraph\nof two lines.\n\n.Another");
        let sections = sections(&help).render();
        let lines: Vec<&str> = sections.lines().collect();
        let expected = [
            ".SH EXAMPLES",
            ".nf",
            "  qqq x",
            "  qqq y",
            ".fi",
            ".SH NOTES",
            "One paragraph",
            "of two lines.",
            ".PP",
            "\\&.Another",
        ];
        assert!(lines.ends_with(&expected), "{sections}");
    }

    #[test]
    fn every_command_has_a_page_that_names_it() {
        let mut root = app::command().disable_help_subcommand(true);
        root.build();
        let mut commands = Vec::new();
        collect(&root, &mut commands);
        let names: Vec<String> = commands.iter().map(|c| file_name(c)).collect();
        for name in ["qqq.1", "qqq-quantize.1", "qqq-eval-kld.1", "qqq-bench-gemm.1"] {
            assert!(names.iter().any(|n| n == name), "{names:?}");
        }
        for command in commands {
            // Without what keeps hyphens from being dashes.
            let text = page(command).unwrap().replace("\\-", "-");
            assert_eq!(text.matches(".ds Aq '").count(), 1, "{text}");
            let name = command.get_bin_name().unwrap();
            assert!(text.contains(&format!("\\fB{name}\\fR")), "{name}: {text}");
            assert!(text.contains("--threads"), "{name}: options of all commands are missing");
        }
    }
}
