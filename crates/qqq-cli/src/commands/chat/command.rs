//! What a message to `qqq chat` asks for.

/// The commands, for `/help`.
pub const COMMANDS: &str = "\
/help         this text
/reset        forget the conversation; the system message stays
/system TEXT  set the system message, and forget the conversation
/system       remove the system message, and forget the conversation
/exit         leave, as /quit and /bye
What has several lines, or begins with a space, is always a message.";

/// The keys of the line editor, for `/help`.
pub const KEYS: &str = "\
Enter         send the message
Alt-Enter     begin a new line, as Ctrl-J; a pasted text stays one message
Up, Down      lines of the message, then earlier messages; Ctrl-R searches
Ctrl-A, -E    go to the beginning or the end of the line
Ctrl-W, -U    cut the word or the line before the cursor; Ctrl-Y pastes it
Ctrl-C        stop the answer; at the prompt: drop what is typed, twice: leave
Ctrl-D        leave
Ctrl-L        clear the screen
Ctrl-Z        suspend, until the shell's fg";

/// A message, or a command.
#[derive(Debug, PartialEq)]
pub enum Input<'a> {
    /// To be answered.
    Say(&'a str),
    /// A new system message, or none.
    System(&'a str),
    /// Forget the conversation.
    Reset,
    /// Say what there is.
    Help,
    /// Leave the chat.
    Exit,
    /// Looks like a command.
    Unknown(&'a str),
    /// Blank lines, which say nothing to the model.
    Nothing,
}

impl<'a> Input<'a> {
    /// Reads what was entered, one line or several. A command is one line, and begins it; those that take no text have
    /// nothing behind them.
    pub fn parse(entered: &'a str) -> Self {
        let text = entered.trim();
        if text.is_empty() {
            return Self::Nothing;
        }
        if entered.starts_with(char::is_whitespace) || text.contains(['\n', '\r']) {
            return Self::Say(text);
        }
        let (command, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        match (command, rest.trim()) {
            ("/exit" | "/quit" | "/bye", "") => Self::Exit,
            ("/reset", "") => Self::Reset,
            ("/help" | "/?", "") => Self::Help,
            ("/system", message) => Self::System(message),
            ("/exit" | "/quit" | "/bye" | "/reset" | "/help", _) => Self::Say(text),
            (other, _) if looks_like_a_command(other) => Self::Unknown(other),
            _ => Self::Say(text),
        }
    }
}

/// Whether a word is a slash and letters: paths and comments of programs, which are pasted as well, have more.
fn looks_like_a_command(word: &str) -> bool {
    word.strip_prefix('/').is_some_and(|name| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphabetic() || c == '-' || c == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        assert_eq!(Input::parse("hello /exit\n"), Input::Say("hello /exit"));
        assert_eq!(Input::parse("/exit \n"), Input::Exit);
        assert_eq!(Input::parse("/reset\r\n"), Input::Reset);
        assert_eq!(Input::parse("/system  Be brief. \n"), Input::System("Be brief."));
        assert_eq!(Input::parse("/system"), Input::System(""));
        assert_eq!(Input::parse("/help"), Input::Help);
        assert_eq!(Input::parse("/rest"), Input::Unknown("/rest"));
        assert_eq!(Input::parse("  \n"), Input::Nothing);
    }

    #[test]
    fn help_fits_a_terminal() {
        assert!([COMMANDS, KEYS].iter().all(|text| text.lines().all(|line| line.len() < 80)));
    }

    #[test]
    fn messages_that_begin_with_a_slash() {
        for text in
            ["/etc/passwd is what?", "// a comment", "/* a comment */", "/", "/1", "/rest\nof a paste"]
        {
            assert_eq!(Input::parse(text), Input::Say(text));
        }
        assert_eq!(Input::parse(" /rest of it"), Input::Say("/rest of it"));
        assert_eq!(Input::parse("/rest of it"), Input::Unknown("/rest"));
    }

    #[test]
    fn messages_that_begin_as_a_command_does() {
        for text in [
            "/exit codes of bash",
            "/help me with this",
            "/? is what?",
            "/reset\nis what git does",
            "/exit\n\n/exit",
            "/system Be\nbrief.",
        ] {
            assert_eq!(Input::parse(text), Input::Say(text));
        }
        for command in ["/exit", "/quit", "/bye", "/reset", "/help", "/?", "/system Be brief.", "/system"] {
            for before in [" ", "\t", "\n"] {
                assert_eq!(Input::parse(&format!("{before}{command}\n")), Input::Say(command));
            }
        }
    }
}
