//! Chat templates: Jinja as transformers renders it.
//!
//! The environment is that of `PreTrainedTokenizerBase.apply_chat_template`: `trim_blocks` and
//! `lstrip_blocks`, loop controls, methods of Python's strings and dicts, `raise_exception`,
//! `strftime_now`, a `tojson` that does not escape for HTML, the special tokens as variables, and
//! the tag `generation`, which only marks text for training.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use minijinja_contrib::pycompat;
use qqq_formats::Checkpoint;
use serde::Serialize;

use crate::tokenizer::{SpecialTokens, read_json};
use crate::{ModelError, Result, Tokenizer};

/// Name of the template in its environment; without an extension, so nothing is escaped.
const NAME: &str = "chat_template";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Text.
    pub content: String,
}

/// A model's chat template (Jinja).
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: SpecialTokens,
}

impl ChatTemplate {
    /// The template that comes with a checkpoint, `None` if it has none.
    ///
    /// # Errors
    /// A template that is no valid Jinja, or several of which none is called `default`.
    pub fn load(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let source = match &checkpoint.gguf {
            Some(file) => file.metadata().string("tokenizer.chat_template")?.map(str::to_owned),
            None => directory_template(&checkpoint.path)?,
        };
        source.map(|s| Self::new(&s, tokenizer.special_tokens())).transpose()
    }

    /// A template from its source.
    ///
    /// # Errors
    /// It is no valid Jinja.
    pub fn new(source: &str, special: &SpecialTokens) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| ModelError::ChatTemplate(describe(&e)))?);
        environment.set_unknown_method_callback(pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: &str| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
            strftime(format, now)
        });
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|e| ModelError::ChatTemplate(describe(&e)))?;
        Ok(ChatTemplate { environment, special: special.clone() })
    }

    /// The prompt for a conversation.
    ///
    /// # Errors
    /// The template fails, or refuses the conversation (roles that do not alternate, say).
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_serialized(Value::from(Serde(messages)), add_generation_prompt, Value::from(()))
    }

    /// The prompt for messages with any fields (`tool_calls`, ...), and with the variable `tools`.
    ///
    /// # Errors
    /// The template fails, or refuses the conversation.
    pub fn render_with(
        &self,
        messages: &[serde_json::Value],
        add_generation_prompt: bool,
        variables: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String> {
        let tools = variables.get("tools").map_or(Value::from(()), |tools| Value::from(Serde(tools)));
        self.render_serialized(Value::from(Serde(messages)), add_generation_prompt, tools)
    }

    fn render_serialized(
        &self,
        messages: Value,
        add_generation_prompt: bool,
        tools: Value,
    ) -> Result<String> {
        let fail = |e: Error| ModelError::ChatTemplate(describe(&e));
        // Tokens a model does not have are undefined in transformers, not none.
        let token = |t: &Option<String>| t.as_deref().map_or(Value::UNDEFINED, Value::from);
        let template = self.environment.get_template(NAME).map_err(fail)?;
        template
            .render(context! {
                messages,
                add_generation_prompt,
                tools,
                documents => Value::from(()),
                bos_token => token(&self.special.bos),
                eos_token => token(&self.special.eos),
                unk_token => token(&self.special.unk),
                pad_token => token(&self.special.pad),
            })
            .map_err(fail)
    }
}

/// The template of a directory: a file of its own takes precedence over the tokenizer's configuration.
fn directory_template(dir: &std::path::Path) -> Result<Option<String>> {
    let path = dir.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(text) => return Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(qqq_formats::FormatError::Io { path, source }.into()),
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let template = read_json(dir, name)?.map(|mut json| json["chat_template"].take());
        match template {
            Some(serde_json::Value::String(text)) => return Ok(Some(text)),
            Some(serde_json::Value::Array(list)) => return named_template(&list, name).map(Some),
            _ => {}
        }
    }
    Ok(None)
}

/// The template called `default` of a list of `{"name": ..., "template": ...}`.
fn named_template(list: &[serde_json::Value], file: &str) -> Result<String> {
    let default = list.iter().find(|t| t["name"] == "default").and_then(|t| t["template"].as_str());
    default.map(str::to_owned).ok_or_else(|| {
        let names: Vec<_> = list.iter().filter_map(|t| t["name"].as_str()).collect();
        ModelError::ChatTemplate(format!("{file} has templates {names:?}, but none called \"default\""))
    })
}

/// Replaces the tags `generation` and `endgeneration` by a condition that always holds, whitespace
/// control and all.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let inside = at + 2;
        let Some(length) = rest[inside..].find("%}") else {
            break;
        };
        let tag = &rest[inside..inside + length];
        out.push_str(&rest[..inside]);
        match tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = &rest[inside + length..];
    }
    out.push_str(rest);
    out
}

/// An error with its causes and the template's line.
fn describe(e: &Error) -> String {
    let mut text = e.detail().map_or_else(|| e.kind().to_string(), str::to_owned);
    if let Some(line) = e.line() {
        text.push_str(&format!(" (line {line} of the template)"));
    }
    let mut source = std::error::Error::source(e);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: Value, args: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = args.get("indent")?;
    if args.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson(ensure_ascii=true) is not supported"));
    }
    args.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(n) => {
            let indent = " ".repeat(n);
            let pretty = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, pretty))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)),
    };
    let text =
        written.map_err(|e| e.to_string()).and_then(|()| String::from_utf8(out).map_err(|e| e.to_string()));
    text.map(Value::from_safe_string).map_err(|e| Error::new(ErrorKind::BadSerialization, e))
}

/// Python's separators: `, ` and `: `.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        w.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        w.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

/// Python's `strftime` in English and UTC, for the directives that templates use.
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let part = match chars.next() {
            Some('Y') => format!("{year}"),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('B') => month_name.into(),
            Some('b') => month_name[..3].into(),
            Some('A') => day_name.into(),
            Some('a') => day_name[..3].into(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('p') => (if hour < 12 { "AM" } else { "PM" }).into(),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => "%".into(),
            other => {
                let directive = other.map(String::from).unwrap_or_default();
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now: the directive %{directive} is not supported"),
                ));
            }
        };
        out.push_str(&part);
    }
    Ok(out)
}

/// Year, month and day of a number of days since 1970-01-01: years are counted from March, so that
/// the leap day is the last, in cycles of 400 years (146,097 days).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468; // days since 0000-03-01
    let (cycle, in_cycle) = (shifted / 146_097, shifted % 146_097);
    let year = (in_cycle - in_cycle / 1460 + in_cycle / 36_524 - in_cycle / 146_096) / 365;
    let in_year = in_cycle - (365 * year + year / 4 - year / 100);
    let march_month = (5 * in_year + 2) / 153;
    let day = in_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (cycle * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_python() {
        // datetime.fromtimestamp(n, timezone.utc).strftime(...)
        for (seconds, expected) in [
            (0, "Thursday Thu 01 January Jan 1970 70-01 00:00:00 12 AM"),
            (951_782_400, "Tuesday Tue 29 February Feb 2000 00-02 00:00:00 12 AM"),
            (1_732_284_671, "Friday Fri 22 November Nov 2024 24-11 14:11:11 02 PM"),
            (4_107_542_399, "Sunday Sun 28 February Feb 2100 00-02 23:59:59 11 PM"),
        ] {
            assert_eq!(strftime("%A %a %d %B %b %Y %y-%m %H:%M:%S %I %p", seconds).unwrap(), expected);
        }
        assert!(strftime("%Q", 0).unwrap_err().to_string().contains("%Q"));
    }

    #[test]
    fn generation_tags_vanish() {
        assert_eq!(
            without_generation_tags("a{%- generation %}b{% endgeneration -%} {% if x %}{%"),
            "a{%- if true %}b{% endif -%} {% if x %}{%"
        );
    }
}
