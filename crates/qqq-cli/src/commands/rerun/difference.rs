//! What two results of a command differ in.

use std::collections::BTreeMap;

use serde_json::Value;

/// Keys that are no figures: times and memory, where things went, what was told beside the result.
const ASIDE: [&str; 18] = [
    "run",
    // Where it lies, which may be in the output.
    "model",
    "rerun",
    "warnings",
    "notes",
    "seed",
    "version",
    "timings",
    "speed",
    "speed_up",
    "tops",
    "of_ceiling",
    "peak_memory",
    "memory_estimate",
    "output",
    "kept",
    "page",
    "from_cache",
];

fn is_aside(key: &str) -> bool {
    ASIDE.contains(&key) || key.contains("seconds") || key.ends_with("_per_second")
}

/// Where two results differ, and by what: names of fields such as `report.layers[3].loss`.
pub fn differences(recorded: &Value, now: &Value) -> Vec<String> {
    let [recorded, now] = [recorded, now].map(|value| {
        let mut leaves = BTreeMap::new();
        flatten(String::new(), value, &mut leaves);
        leaves
    });
    let shown = |value: Option<&&Value>| value.map_or_else(|| "not there".into(), |value| value.to_string());
    let names = recorded.keys().chain(now.keys().filter(|name| !recorded.contains_key(*name)));
    let of = |name: &String| {
        let (before, after) = (recorded.get(name), now.get(name));
        (before != after).then(|| format!("{name} was {} and is {}", shown(before), shown(after)))
    };
    names.filter_map(of).collect()
}

/// How many figures are compared.
pub fn figures(result: &Value) -> usize {
    let mut leaves = BTreeMap::new();
    flatten(String::new(), result, &mut leaves);
    leaves.values().filter(|value| value.is_number()).count()
}

fn flatten<'v>(name: String, value: &'v Value, leaves: &mut BTreeMap<String, &'v Value>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields.iter().filter(|(key, _)| !is_aside(key)) {
                let dot = if name.is_empty() { "" } else { "." };
                flatten(format!("{name}{dot}{key}"), value, leaves);
            }
        }
        Value::Array(items) => {
            let all = items.iter().enumerate();
            all.for_each(|(index, value)| flatten(format!("{name}[{index}]"), value, leaves));
        }
        leaf => {
            leaves.insert(name, leaf);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_that_differ_are_named_and_times_are_not() {
        let earlier = json!({ "loss": 0.25, "layers": [{ "name": "a", "error": 1 }, { "name": "b", "error": 2 }], "seconds": 1.0,
            "run": { "version": "0.1.0" }, "decode_tokens_per_second": { "median": 4 }, "gone": null });
        assert!(differences(&earlier, &earlier).is_empty());
        assert_eq!(figures(&earlier), 3);
        let now = json!({ "loss": 0.25, "layers": [{ "name": "a", "error": 1 }, { "name": "b", "error": 3 }], "seconds": 2.0,
            "decode_tokens_per_second": { "median": 5 }, "new": 7 });
        assert_eq!(
            differences(&earlier, &now),
            [
                "gone was null and is not there",
                "layers[1].error was 2 and is 3",
                "new was not there and is 7"
            ]
        );
    }
}
