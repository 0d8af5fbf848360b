//! Which options were given: an option that does nothing is refused only if somebody has asked for it.

use clap::{ArgMatches, Args, Command, Error, FromArgMatches, parser::ValueSource};

/// The options on the command line, by their names without dashes. Flattened into the options of a command it knows those
/// that come after it there: reading a value takes it away.
#[derive(Clone, Debug, Default)]
pub struct Given(Vec<String>);

impl Given {
    /// Whether an option was given.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|n| n == name)
    }
}

impl FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let is_given = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
        // The names of fields.
        Ok(Self(
            matches.ids().map(clap::Id::as_str).filter(is_given).map(|id| id.replace('_', "-")).collect(),
        ))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Given {
    fn augment_args(command: Command) -> Command {
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        command
    }
}
