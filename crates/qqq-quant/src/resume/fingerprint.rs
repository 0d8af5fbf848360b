//! What decides on the bytes of a checkpoint: a run goes on with what another has finished only if all of it is the
//! same.

use std::{collections::BTreeMap, hash::Hasher as _};

use qqq_formats::Checkpoint;
use serde_json::{Value, json};
use twox_hash::XxHash3_64;

use crate::{
    Recipe, Result,
    calibration::{CalibrationText, TokenWindows},
    preflight::Plan,
};

/// The tokens' key.
const TOKENS: &str = "the calibration tokens' hash";
/// Differences that are told.
const SHOWN: usize = 4;

/// Names of what decides, with their values.
pub(crate) type Fingerprint = BTreeMap<String, Value>;

/// That of a run, without its calibration tokens.
pub(crate) fn of_run(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    plan: &Plan,
    text: CalibrationText<'_>,
    device: &str,
) -> Result<Fingerprint> {
    let mut print = Fingerprint::new();
    print.insert("qqq's version".into(), env!("CARGO_PKG_VERSION").into());
    print.insert("the device".into(), device.into());
    print.insert("the format".into(), plan.format_name().into());
    print.insert("the 16-bit type".into(), plan.half.config_name().into());
    print.insert("the calibration text".into(), text.source.describe().into());
    print.insert("held-out windows".into(), text.held_out.into());
    flatten("the recipe's ", &json!(recipe), &mut print);
    for file in checkpoint.inputs.prints()? {
        let mut add = |what: &str, value: Value| print.insert(format!("{}'s {what}", file.name), value);
        add("size", file.bytes.into());
        add("time of modification", file.modified.into());
        add("content", format!("{:016x}", file.ends).into());
    }
    Ok(print)
}

/// Adds the tokens of the windows.
pub(super) fn add_tokens(print: &mut Fingerprint, windows: &TokenWindows) {
    let mut hash = XxHash3_64::new();
    for window in windows.all() {
        hash.write(&(window.len() as u64).to_le_bytes());
        hash.write(bytemuck::cast_slice(window));
    }
    print.insert(TOKENS.into(), format!("{:016x}", hash.finish()).into());
}

/// How this run's differs from a stopped run's. One that has no tokens yet is compared without.
pub(super) fn difference(stopped: &Fingerprint, now: &Fingerprint) -> Option<String> {
    let names: Vec<&String> =
        stopped.keys().chain(now.keys().filter(|k| !stopped.contains_key(*k))).collect();
    let differs = |name: &&String| {
        let waits = name.as_str() == TOKENS && !now.contains_key(TOKENS);
        !waits && stopped.get(*name) != now.get(*name)
    };
    let shown = |value: Option<&Value>| match value {
        None => "not there".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    let all: Vec<String> = names
        .into_iter()
        .filter(differs)
        .map(|name| format!("{name} was {}, and is {}", shown(stopped.get(name)), shown(now.get(name))))
        .collect();
    let more = match all.len() {
        0 => return None,
        1..=SHOWN => String::new(),
        n => format!("; and {} more differences", n - SHOWN),
    };
    Some(all[..all.len().min(SHOWN)].join("; ") + &more)
}

/// The values of nested objects, under their joined names.
fn flatten(name: &str, value: &Value, print: &mut Fingerprint) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let joined =
                    if name.ends_with(' ') { format!("{name}{key}") } else { format!("{name}.{key}") };
                flatten(&joined, value, print);
            }
        }
        value => {
            print.insert(name.into(), value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Calibration;

    #[test]
    fn what_differs_is_named() {
        let print = |recipe: &Recipe, tokens: Option<&[Vec<u32>]>| {
            let mut print = Fingerprint::new();
            flatten("the recipe's ", &json!(recipe), &mut print);
            if let Some(tokens) = tokens {
                add_tokens(&mut print, &TokenWindows { calibration: tokens.to_vec(), held_out: Vec::new() });
            }
            print
        };
        let tokens = [vec![1, 2], vec![3]];
        let stopped = print(&Recipe::DEFAULT, Some(&tokens));
        assert_eq!(difference(&stopped, &print(&Recipe::DEFAULT, Some(&tokens))), None);
        assert_eq!(difference(&stopped, &print(&Recipe::DEFAULT, None)), None);
        let calibration = Calibration { windows: 3, ..Recipe::DEFAULT.calibration };
        let other = Recipe { damping: 0.5, calibration, ..Recipe::DEFAULT };
        assert_eq!(
            difference(&stopped, &print(&other, None)).unwrap(),
            "the recipe's calibration.windows was 32, and is 3; the recipe's damping was 0.01, and is 0.5"
        );
        // The same tokens, cut elsewhere.
        let cut = difference(&stopped, &print(&Recipe::DEFAULT, Some(&[vec![1], vec![2, 3]]))).unwrap();
        assert!(cut.starts_with(TOKENS), "{cut}");
        let nothing = difference(&stopped, &Fingerprint::new()).unwrap();
        assert!(nothing.contains("is not there") && nothing.contains("more differences"), "{nothing}");
    }
}
