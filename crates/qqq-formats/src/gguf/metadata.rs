//! Metadata values of a GGUF file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{FormatError, Result};

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `UINT8`, `UINT16`, `UINT32` or `UINT64`.
    Unsigned(u64),
    /// `INT8`, `INT16`, `INT32` or `INT64`.
    Signed(i64),
    /// `FLOAT32` or `FLOAT64` (an f32 widens exactly).
    Float(f64),
    /// A value of GGUF's type `BOOL`.
    Bool(bool),
    /// A value of GGUF's type `STRING`, which must be UTF-8.
    String(String),
    /// `ARRAY` of strings.
    Strings(Vec<String>),
    /// `ARRAY` of any integer type (a `UINT64` beyond `i64::MAX` is refused on reading).
    Integers(Vec<i64>),
    /// `ARRAY` of floats.
    Floats(Vec<f64>),
    /// `ARRAY` of booleans.
    Bools(Vec<bool>),
}

impl Value {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Unsigned(_) => "an unsigned integer",
            Value::Signed(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Bool(_) => "a boolean",
            Value::String(_) => "a string",
            Value::Strings(_) => "an array of strings",
            Value::Integers(_) => "an array of integers",
            Value::Floats(_) => "an array of floats",
            Value::Bools(_) => "an array of booleans",
        }
    }
}

/// All metadata of a file. The typed getters give `None` where a key is absent and an error
/// naming file, key and type where it holds something else.
#[derive(Clone, Debug)]
pub struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, Value>,
}

/// A typed getter: name, type, what is expected, pattern and result.
macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident -> $ty:ty, $expected:literal: $($pattern:pat => $value:expr),+;)*) => {
        $($(#[$doc])*
        pub fn $name(&self, key: &str) -> Result<Option<$ty>> {
            match self.values.get(key) {
                None => Ok(None),
                $(Some($pattern) => Ok(Some($value)),)+
                Some(other) => Err(self.wrong(key, other, $expected)),
            }
        })*
    };
}

impl Metadata {
    pub(super) fn new(path: PathBuf, values: BTreeMap<String, Value>) -> Self {
        Metadata { path, values }
    }

    /// All keys and values, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// A value, whatever its type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// The file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    getters! {
        /// A string.
        string -> &str, "a string": Value::String(s) => s;
        /// An array of strings.
        strings -> &[String], "an array of strings": Value::Strings(v) => v;
        /// A boolean.
        bool -> bool, "a boolean": Value::Bool(b) => *b;
        /// A number, integers included.
        float -> f64, "a number":
            Value::Float(x) => *x, Value::Unsigned(x) => *x as f64, Value::Signed(x) => *x as f64;
        /// An array of floats.
        floats -> &[f64], "an array of floats": Value::Floats(v) => v;
        /// An array of integers.
        integers -> &[i64], "an array of integers": Value::Integers(v) => v;
        /// An integer that is not negative.
        unsigned -> u64, "an integer that is not negative":
            Value::Unsigned(x) => *x, Value::Signed(x @ 0..) => *x as u64;
    }

    /// A count or size.
    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        self.unsigned(key)?
            .map(|n| usize::try_from(n).map_err(|_| self.malformed(format!("{key} is {n}, too large"))))
            .transpose()
    }

    /// A token id.
    pub fn token_id(&self, key: &str) -> Result<Option<u32>> {
        // Some converters write -1 (as u32 or i32) for "none".
        if let Some(Value::Signed(..=-1) | Value::Unsigned(0xffff_ffff)) = self.values.get(key) {
            return Ok(None);
        }
        self.unsigned(key)?
            .map(|n| {
                u32::try_from(n).map_err(|_| self.malformed(format!("{key} is {n}, which is no token id")))
            })
            .transpose()
    }

    /// Like a getter's `Some`, with an error where the key is absent.
    pub(super) fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.malformed(format!("metadata key {key} is missing")))
    }

    pub(super) fn malformed(&self, reason: String) -> FormatError {
        FormatError::Malformed { path: self.path.clone(), reason }
    }

    fn wrong(&self, key: &str, found: &Value, expected: &str) -> FormatError {
        self.malformed(format!("metadata key {key} holds {}, expected {expected}", found.kind()))
    }
}
