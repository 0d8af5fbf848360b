//! Files beside config.json that say how a model is quantized.
//!
//! Old versions of the tools wrote these alone, newer ones write config.json as well. Readers differ: transformers and vLLM go by
//! config.json, and by the other file only where it has no `quantization_config`; GPTQModel goes by the other file first. What
//! both of them say must therefore agree; what only the other file says counts, for it is the one of the tool that has made the
//! weights.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{FormatError, InputFile, Result, config::parse_json, keys::shown};

/// The files, and what has made the weights where they do not say it.
const FILES: [(&str, &str); 3] = [
    ("quantize_config.json", "gptq"),
    ("quant_config.json", "awq"),
    ("quantization_config.json", "auto-round"),
];

/// Keys that decide what the weights are, with another name of some.
const DECISIVE: [(&str, Option<&str>); 14] = [
    ("quant_method", None),
    ("bits", Some("w_bit")),
    ("group_size", Some("q_group_size")),
    ("sym", None),
    ("zero_point", None),
    ("desc_act", None),
    ("static_groups", None),
    ("act_group_aware", None),
    ("checkpoint_format", None),
    ("format", None),
    ("packing_format", None),
    ("version", None),
    ("pack_dtype", None),
    ("lm_head", None),
];

/// What the first of the files says, if there is one.
///
/// # Errors
/// A file that cannot be read, or holds no JSON object.
pub(super) fn alone(path: &Path) -> Result<Option<Map<String, Value>>> {
    for (file, method) in FILES {
        if let Some(mut map) = read(&path.join(file))? {
            map.entry("quant_method").or_insert_with(|| method.into());
            return Ok(Some(map));
        }
    }
    Ok(None)
}

/// Adds to what config.json says what only the other files say of the decisive keys.
///
/// # Errors
/// As [`alone`]; a file that says something else.
pub(super) fn complete(path: &Path, map: &mut Map<String, Value>) -> Result<()> {
    for (file, _) in FILES {
        let Some(other) = read(&path.join(file))? else { continue };
        for (key, alias) in DECISIVE {
            let names: Vec<&str> = std::iter::once(key).chain(alias).collect();
            let Some((name, theirs)) = said(&other, &names) else { continue };
            match said(map, &names) {
                None => {
                    map.insert(key.to_owned(), theirs.clone());
                }
                Some((_, ours)) if same(ours, theirs) => {}
                Some((our_name, ours)) => {
                    return Err(FormatError::Unsupported(format!(
                        "{}: {name} is {}, but in config.json's quantization_config {our_name} is {}; readers differ in which \
                         file they go by, so it is not known what the weights are: remove the file or entry that is wrong",
                        path.join(file).display(),
                        shown(theirs),
                        shown(ours),
                    )));
                }
            }
        }
    }
    Ok(())
}

/// The first of the names that has a value, and that.
fn said<'a, 'b>(map: &'a Map<String, Value>, names: &[&'b str]) -> Option<(&'b str, &'a Value)> {
    names.iter().find_map(|name| map.get(*name).filter(|v| !v.is_null()).map(|value| (*name, value)))
}

/// Names are written in capitals or not (AWQ's GEMM).
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_str(), b.as_str()) {
        (Some(a), Some(b)) => a.eq_ignore_ascii_case(b),
        _ => a == b,
    }
}

fn read(file: &Path) -> Result<Option<Map<String, Value>>> {
    if !file.is_file() {
        return Ok(None);
    }
    match parse_json(file, &InputFile::open(file)?.read()?)? {
        Value::Object(map) => Ok(Some(map)),
        _ => Err(FormatError::Malformed { path: file.into(), reason: "not a JSON object".into() }),
    }
}
