//! The log: on standard error, and its warnings in the JSON object as well.

use std::fmt::Write as _;

use tracing::{Event, Level, Subscriber, field::Visit};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::LevelFilter,
    layer::{Context, SubscriberExt},
    util::SubscriberInitExt,
};

use crate::{
    console::{Console, Warnings},
    errors::bad_input_hint,
};

/// Logs to standard error from now on, as `QQQ_LOG` says, else by the number of `-v`.
///
/// # Errors
/// `QQQ_LOG` is no filter.
pub fn start(console: &Console, verbose: u8) -> anyhow::Result<()> {
    let level = match (console.quiet(), verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, 2) => "debug",
        (false, _) => "trace",
    };
    let filter = asked()?.unwrap_or_else(|| EnvFilter::new(level));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(console.colour_err())
        .without_time()
        .with_target(false);
    let collected = Collect(console.warnings()).with_filter(LevelFilter::WARN);
    Registry::default().with(lines.with_filter(filter)).with(collected).init();
    Ok(())
}

/// Whether `QQQ_LOG` is a filter, if it is set.
///
/// # Errors
/// It is none.
pub fn check() -> anyhow::Result<()> {
    asked().map(|_| ())
}

fn asked() -> anyhow::Result<Option<EnvFilter>> {
    let set = std::env::var_os("QQQ_LOG").filter(|v| !v.is_empty());
    set.map(|text| filter(&text.to_string_lossy())).transpose()
}

fn filter(text: &str) -> anyhow::Result<EnvFilter> {
    for part in text.split(',').map(str::trim) {
        // Any word would be taken for the name of a module, and "dbug" silence everything.
        let is_known = part.parse::<LevelFilter>().is_ok() || part.starts_with("qqq");
        if !is_known && !part.contains(['=', '[']) {
            return Err(refuse(text, &format!("{part:?} is no level")));
        }
    }
    EnvFilter::try_new(text).map_err(|e| refuse(text, &e.to_string()))
}

fn refuse(text: &str, reason: &str) -> anyhow::Error {
    bad_input_hint(
        format!("QQQ_LOG: {text:?} is no filter: {reason}"),
        "a level (off, error, warn, info, debug, trace), or levels of modules, as qqq=debug or warn,qqq_model=trace",
    )
}

/// Keeps warnings for the JSON object.
struct Collect(Warnings);

impl<S: Subscriber> Layer<S> for Collect {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // Errors come as the command's own.
        if *event.metadata().level() == Level::WARN {
            let mut message = Message(String::new());
            event.record(&mut message);
            self.0.add(message.0);
        }
    }
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errors::{BAD_INPUT, Failure};

    #[test]
    fn filters_that_are_none_are_refused_by_name() {
        for good in ["debug", "WARN", "qqq=debug", "qqq_model", "warn,qqq_model=trace", "off"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["loud", "dbug", "qqq=loud", "debug please", "warn,dbug"] {
            let failure = Failure::of(&filter(bad).unwrap_err());
            assert!(failure.message.starts_with("QQQ_LOG: "), "{}", failure.message);
            assert_eq!(failure.exit_code, BAD_INPUT);
        }
    }
}
