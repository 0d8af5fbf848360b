//! Variables of the environment that are ours.

use std::ffi::OsString;

use serde_json::json;

use super::Finding;
use crate::logging;

/// What commands read.
const KNOWN: [&str; 8] = [
    "QQQ_CACHE",
    "QQQ_HISTORY",
    "QQQ_ISA",
    "QQQ_KERNELS",
    "QQQ_KERNEL_CACHE",
    "QQQ_LOG",
    "QQQ_NVRTC",
    "QQQ_THREADS",
];
/// What the vLLM plugin, builds and tests read: names, or beginnings of names.
const ELSEWHERE: [&str; 7] = [
    "QQQ_VLLM_",
    "QQQ_PREBUILT_KERNELS",
    "QQQ_TEST_",
    "QQQ_COMPILE",
    "QQQ_EMULATE",
    "QQQ_INTEROP",
    "QQQ_BIN",
];

pub(super) fn look() -> Vec<Finding> {
    let set = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    of(set.collect())
}

fn of(mut set: Vec<(String, OsString)>) -> Vec<Finding> {
    const WHAT: &str = "environment";
    set.retain(|(name, value)| name.starts_with("QQQ_") && !value.is_empty());
    set.sort();
    let is_unknown =
        |name: &str| !KNOWN.contains(&name) && !ELSEWHERE.iter().any(|start| name.starts_with(start));
    let (unknown, known): (Vec<_>, Vec<_>) = set.into_iter().partition(|(name, _)| is_unknown(name));
    let shown = |(name, value): &(String, OsString)| format!("{name}={}", value.to_string_lossy());
    let found = match known.len() {
        0 => "no variable of qqq is set".to_owned(),
        _ => known.iter().map(shown).collect::<Vec<_>>().join(", "),
    };
    let names = |set: &[(String, OsString)]| set.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let details = json!({ "set": names(&known), "unknown": names(&unknown) });
    let mut findings = vec![match logging::check() {
        Ok(()) => Finding::ok(WHAT, found),
        Err(e) => Finding::fault(WHAT, e.to_string(), "unset QQQ_LOG, or set it to a level: debug"),
    }];
    if !unknown.is_empty() {
        findings.push(Finding::lack(
            WHAT,
            format!("nothing reads {}", names(&unknown).join(", ")),
            "what was meant by it does not happen",
            format!("commands read {}", KNOWN.join(", ")),
        ));
    }
    findings.into_iter().map(|finding| finding.with(details.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::State;

    #[test]
    fn unknown_variables_are_named() {
        let of = |names: &[&str]| of(names.iter().map(|n| ((*n).to_owned(), "1".into())).collect());
        assert_eq!(of(&["HOME", "QQQ_ISA", "QQQ_VLLM_FUSION", "QQQ_EMULATE_SEED"]).len(), 1);
        let findings = of(&["QQQ_THREADS", "QQQ_THREAD", "QQQ"]);
        assert_eq!(findings.len(), 2);
        assert_eq!(findings[1].state, State::Lack);
        assert_eq!(findings[1].found, "nothing reads QQQ_THREAD");
        // What is set to nothing counts as not set.
        assert_eq!(super::of(vec![("QQQ_X".into(), "".into())]).len(), 1);
    }

    #[test]
    fn help_and_this_list_know_the_same() {
        let mut command = crate::app::command();
        let help = command.render_help().to_string();
        for name in KNOWN {
            assert!(help.contains(&format!("  {name}")), "{name}");
        }
        let words = help.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|w| w.starts_with("QQQ_")) {
            assert!(KNOWN.contains(&word), "{word}");
        }
    }
}
