//! Typed access to the fields of a JSON object, with errors that name file and field.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{
    FormatError, Result,
    keys::{KnownKeys, shown},
};

/// A JSON object of a configuration file. A field that is null counts as missing.
pub(super) struct Fields<'a> {
    path: &'a Path,
    /// Where in the file the object lies (`rope_scaling.`).
    at: &'static str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub fn new(path: &'a Path, at: &'static str, map: &'a Map<String, Value>) -> Self {
        Self { path, at, map }
    }

    pub fn path(&self) -> &'a Path {
        self.path
    }

    pub fn malformed(&self, reason: &str) -> FormatError {
        FormatError::Malformed { path: self.path.into(), reason: reason.into() }
    }

    fn wrong(&self, key: &str, value: &Value, wanted: &str) -> FormatError {
        self.malformed(&format!("{}{key} is {}, but must be {wanted}", self.at, shown(value)))
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether the field is there and null.
    pub fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// Whether the field is there, null or not.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Whether the field is there and not null.
    pub fn is_there(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Whether there are no fields.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Refuses fields that are not known; `why` ends the sentence "KEY is VALUE, ...".
    pub fn check_known(&self, keys: &KnownKeys, why: &str) -> Result<()> {
        self.check_known_but(&[], keys, why)
    }

    /// As [`check_known`](Self::check_known); `own` are looked at elsewhere as well.
    pub fn check_known_but(&self, own: &[&str], keys: &KnownKeys, why: &str) -> Result<()> {
        match keys.first_unknown(self.map, own) {
            None => Ok(()),
            Some((key, value)) => Err(FormatError::Unsupported(format!(
                "{}: {}{key} is {}, {why}",
                self.path.display(),
                self.at,
                shown(value)
            ))),
        }
    }

    /// An integer from 1 to `max`.
    pub fn size(&self, key: &str, default: Option<usize>, max: usize) -> Result<usize> {
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.malformed(&format!("{}{key} is missing", self.at))),
            (Some(value), _) => value
                .as_u64()
                .and_then(|n| usize::try_from(n).ok())
                .filter(|n| (1..=max).contains(n))
                .ok_or_else(|| self.wrong(key, value, &format!("an integer from 1 to {max}"))),
        }
    }

    /// An integer from 0 on.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        self.get(key)
            .map(|value| {
                value
                    .as_u64()
                    .and_then(|n| usize::try_from(n).ok())
                    .ok_or_else(|| self.wrong(key, value, "an integer from 0 on"))
            })
            .transpose()
    }

    /// A finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key)
            .map(|value| {
                value
                    .as_f64()
                    .filter(|x| x.is_finite())
                    .ok_or_else(|| self.wrong(key, value, "a finite number"))
            })
            .transpose()
    }

    /// A number above 0 that must be there.
    pub fn positive(&self, key: &str) -> Result<f64> {
        match self.number(key)? {
            Some(x) if x > 0.0 => Ok(x),
            Some(x) => Err(self.malformed(&format!("{}{key} is {x}, but must be above 0", self.at))),
            None => Err(self.malformed(&format!("{}{key} is missing", self.at))),
        }
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        self.get(key).map_or(Ok(default), |value| {
            value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false"))
        })
    }

    pub fn string(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key)
            .map(|value| value.as_str().ok_or_else(|| self.wrong(key, value, "a string")))
            .transpose()
    }

    /// A list of strings; empty where it is missing.
    pub fn strings(&self, key: &str) -> Result<Vec<&'a str>> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        value
            .as_array()
            .and_then(|list| list.iter().map(Value::as_str).collect())
            .ok_or_else(|| self.wrong(key, value, "a list of strings"))
    }

    /// A list of numbers; empty where it is missing.
    pub fn numbers(&self, key: &str) -> Result<Vec<f64>> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        value
            .as_array()
            .and_then(|list| list.iter().map(Value::as_f64).collect())
            .ok_or_else(|| self.wrong(key, value, "a list of numbers"))
    }

    pub fn object(&self, key: &'static str) -> Result<Option<Fields<'a>>> {
        self.get(key)
            .map(|value| match value {
                Value::Object(map) => Ok(Fields::new(self.path, key_prefix(key), map)),
                other => Err(self.wrong(key, other, "an object")),
            })
            .transpose()
    }

    /// One token id, several, or none.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let one = |value: &Value| {
            value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| self.wrong(key, value, "a token id or a list of token ids"))
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            // Some old configurations write "no such token" as -1.
            Some(value) if value.as_i64() == Some(-1) => Ok(Vec::new()),
            Some(value) => Ok(vec![one(value)?]),
        }
    }
}

/// Prefix of the names of an object's fields in messages.
fn key_prefix(key: &'static str) -> &'static str {
    match key {
        "rope_scaling" => "rope_scaling.",
        "rope_parameters" => "rope_parameters.",
        "full_attention" => "rope_parameters.full_attention.",
        "sliding_attention" => "rope_parameters.sliding_attention.",
        _ => "",
    }
}
