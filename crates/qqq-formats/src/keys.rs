//! Which keys of a configuration are known. A key that nobody looks at may change what a model computes, so it must
//! be on a list of those that do not, or have a value that says nothing.

use serde_json::{Map, Value};

/// What is known of the keys of a JSON object.
pub(crate) struct KnownKeys {
    /// Keys whose values are looked at elsewhere.
    pub read: &'static [&'static [&'static str]],
    /// Keys that change nothing that is computed, whatever their values.
    pub harmless: &'static [&'static [&'static str]],
    /// Keys of what is not implemented, with the values at which it does nothing.
    pub neutral: &'static [(&'static str, Neutral)],
}

/// Values at which a part of a model does nothing.
#[derive(Clone, Copy)]
pub(crate) enum Neutral {
    /// A factor of one, or a list of them.
    One,
    /// A number of zero.
    Zero,
    /// What is done anyway.
    True,
    /// What is done anyway, by its name.
    Names(&'static [&'static str]),
}

impl Neutral {
    fn allows(self, value: &Value) -> bool {
        match self {
            // False is not what is done anyway.
            Neutral::True => value.is_null() || value == &Value::Bool(true),
            _ if is_idle(value) => true,
            Neutral::One => match value {
                Value::Array(list) => list.iter().all(|v| v.as_f64() == Some(1.0)),
                value => value.as_f64() == Some(1.0),
            },
            Neutral::Zero => value.as_f64() == Some(0.0),
            Neutral::Names(names) => value.as_str().is_some_and(|s| names.contains(&s)),
        }
    }
}

impl KnownKeys {
    /// The first key that is not known, nor among `own`, and whose value says something.
    pub fn first_unknown<'m>(
        &self,
        map: &'m Map<String, Value>,
        own: &[&str],
    ) -> Option<(&'m str, &'m Value)> {
        let listed = |lists: &[&[&str]], key: &str| lists.iter().any(|list| list.contains(&key));
        map.iter().map(|(key, value)| (key.as_str(), value)).filter(|(key, _)| !own.contains(key)).find(
            |(key, value)| match self.neutral.iter().find(|(name, _)| name == key) {
                Some((_, neutral)) => !neutral.allows(value),
                None => !(is_idle(value) || listed(self.read, key) || listed(self.harmless, key)),
            },
        )
    }
}

/// Values that say nothing: null, false, and what is empty.
fn is_idle(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// A value for a message, shortened.
pub(crate) fn shown(value: &Value) -> String {
    const LENGTH: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEYS: KnownKeys = KnownKeys {
        read: &[&["size"]],
        harmless: &[&["note"]],
        neutral: &[("scale", Neutral::One), ("cap", Neutral::Zero), ("causal", Neutral::True)],
    };

    fn unknown(value: Value) -> Option<String> {
        let map = value.as_object().unwrap();
        KEYS.first_unknown(map, &[]).map(|(key, value)| format!("{key} {}", shown(value)))
    }

    #[test]
    fn unknown_keys_are_found_unless_they_say_nothing() {
        assert_eq!(unknown(json!({"size": 3, "note": {"a": 1}})), None);
        assert_eq!(unknown(json!({"x": null, "y": false, "z": [], "s": {}, "t": ""})), None);
        assert_eq!(unknown(json!({"size": 3, "x": true, "y": 1})), Some("x true".into()));
        assert_eq!(unknown(json!({"x": 0})), Some("x 0".into()));
        assert_eq!(unknown(json!({"scale": 1, "cap": 0.0, "causal": true})), None);
        assert_eq!(unknown(json!({"scale": [1, 1.0]})), None);
        assert_eq!(unknown(json!({"scale": [1, 0]})), Some("scale [1,0]".into()));
        assert_eq!(unknown(json!({"scale": 0.5})), Some("scale 0.5".into()));
        assert_eq!(unknown(json!({"cap": 50.0})), Some("cap 50.0".into()));
        assert_eq!(unknown(json!({"causal": false})), Some("causal false".into()));
        assert_eq!(unknown(json!({"causal": null, "scale": false})), None);
        let long = unknown(json!({"x": "é".repeat(200)})).unwrap();
        assert!(long.ends_with("é...") && long.chars().count() < 90, "{long}");
    }
}
