//! The line editor: reedline with the keys of a chat.

use std::{
    borrow::Cow,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use anyhow::Context;
use crossterm::event::{Event, KeyEvent};
use reedline::{
    EditCommand, EditMode, Emacs, FileBackedHistory, KeyCode, KeyModifiers, Prompt, PromptEditMode,
    PromptHistorySearch, PromptHistorySearchStatus, Reedline, ReedlineEvent, ReedlineRawEvent, Signal,
    default_emacs_keybindings,
};

use super::{
    history,
    terminal::{KeySignals, Terminal},
};
use crate::console::Console;

/// Reads messages from a terminal.
pub struct Editor {
    line: Reedline,
    terminal: Terminal,
    /// Set by a second Ctrl-C: keys that come at once after the first, the editor drops.
    leave: Arc<AtomicBool>,
    /// Whether messages are written to a file.
    kept: bool,
}

impl Editor {
    /// Takes the terminal. `history`: the file of earlier messages.
    pub fn new(history: Option<&Path>, console: &Console) -> anyhow::Result<Self> {
        let terminal = Terminal::take().context("cannot set the terminal up")?;
        let leave = Arc::new(AtomicBool::new(false));
        let mut line = Reedline::create()
            .with_edit_mode(Box::new(Keys::new(Arc::clone(&leave))))
            .use_bracketed_paste(true)
            .with_ansi_colors(false)
            // As in shells: what begins with a space is not kept.
            .with_history_exclusion_prefix(Some(" ".into()));
        let file = history.and_then(|path| match kept_in(path) {
            Ok(history) => history,
            Err(reason) => {
                console.warn(&format!("{}: {reason}; messages are not kept", path.display()));
                None
            }
        });
        let kept = file.is_some();
        // Without a file, what was entered in this chat is still there.
        if let Some(history) = file.map_or_else(|| FileBackedHistory::new(history::MESSAGES).ok(), Some) {
            line = line.with_history(Box::new(history));
        }
        Ok(Self { line, terminal, leave, kept })
    }

    /// The next message, `None` to leave.
    pub fn read(&mut self, console: &Console) -> anyhow::Result<Option<String>> {
        self.terminal.read_keys();
        loop {
            let signal = self.line.read_line(&ChatPrompt);
            self.terminal.mark_pastes();
            let signal = signal.context("cannot read from the terminal")?;
            if self.leave.load(Relaxed) {
                return Ok(None);
            }
            match signal {
                Signal::Success(text) => {
                    self.keep(console);
                    return Ok(Some(text));
                }
                Signal::CtrlC => console.note("(Ctrl-C again leaves, as Ctrl-D and /exit do)"),
                Signal::HostCommand(_) => {
                    console.line("")?;
                    self.terminal.suspend();
                }
                _ => return Ok(None),
            }
        }
    }

    /// Ctrl-C and Ctrl-Z are signals while this lives.
    pub fn signals(&self) -> KeySignals {
        self.terminal.signals()
    }

    /// Writes the history now: a chat may end by a signal.
    fn keep(&mut self, console: &Console) {
        if self.kept
            && let Err(e) = self.line.sync_history()
        {
            console.warn(&format!("messages are not kept from now on: {e}"));
            self.kept = false;
        }
    }
}

/// The history in a file, `None` if it is not to be kept.
fn kept_in(path: &Path) -> Result<Option<FileBackedHistory>, String> {
    match history::prepare(path) {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(e) => return Err(e.to_string()),
    }
    FileBackedHistory::with_file(history::MESSAGES, path.to_owned()).map(Some).map_err(|e| e.to_string())
}

/// Emacs's keys, and those of a chat.
struct Keys {
    emacs: Emacs,
    /// Whether the last key was Ctrl-C.
    interrupted: bool,
    leave: Arc<AtomicBool>,
}

impl Keys {
    fn new(leave: Arc<AtomicBool>) -> Self {
        let mut keys = default_emacs_keybindings();
        // Every terminal can send this one, Alt-Enter not.
        let newline = ReedlineEvent::Edit(vec![EditCommand::InsertNewline]);
        keys.add_binding(KeyModifiers::CONTROL, KeyCode::Char('j'), newline);
        if cfg!(unix) {
            let suspend = ReedlineEvent::ExecuteHostCommand("suspend".into());
            keys.add_binding(KeyModifiers::CONTROL, KeyCode::Char('z'), suspend);
        }
        Self { emacs: Emacs::new(keys), interrupted: false, leave }
    }
}

impl EditMode for Keys {
    fn parse_event(&mut self, event: ReedlineRawEvent) -> ReedlineEvent {
        let event = Event::from(event);
        let is_ctrl_c = matches!(
            event,
            Event::Key(KeyEvent { code: KeyCode::Char('c'), modifiers: KeyModifiers::CONTROL, .. })
        );
        let again = match event {
            Event::Key(_) | Event::Paste(_) => std::mem::replace(&mut self.interrupted, is_ctrl_c),
            _ => false,
        };
        if is_ctrl_c && again {
            self.leave.store(true, Relaxed);
        }
        match ReedlineRawEvent::try_from(event) {
            Ok(event) => self.emacs.parse_event(event),
            Err(()) => ReedlineEvent::None,
        }
    }

    fn edit_mode(&self) -> PromptEditMode {
        self.emacs.edit_mode()
    }
}

/// `> `, and nothing that a copied text would have in it.
struct ChatPrompt;

impl Prompt for ChatPrompt {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        "".into()
    }

    fn render_prompt_indicator(&self, _: PromptEditMode) -> Cow<'_, str> {
        "> ".into()
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        "  ".into()
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        let failing = matches!(search.status, PromptHistorySearchStatus::Failing);
        let failed = if failing { "nothing has " } else { "" };
        format!("(search: {failed}{}) ", search.term).into()
    }
}
