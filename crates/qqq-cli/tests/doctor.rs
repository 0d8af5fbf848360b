//! What `qqq doctor` finds.

mod common;

use std::net::TcpListener;

use common::{Place, Run};
use serde_json::Value;

fn doctor(place: &Place, variables: &[(&str, &str)]) -> Run {
    let mut command = place.command();
    command.args(["doctor", "--json"]).env("QQQ_CACHE", place.path("cache")).env("HF_HOME", place.path("hf"));
    command.envs(variables.iter().copied());
    Run::of(command.output().unwrap())
}

fn finding<'a>(report: &'a Value, what: &str, state: &str) -> &'a Value {
    let findings = report["findings"].as_array().unwrap();
    let hit = findings.iter().find(|f| f["what"] == what && f["state"] == state);
    hit.unwrap_or_else(|| panic!("no {state} {what}: {report:#}"))
}

#[test]
fn a_machine_that_computes_is_ok() {
    let place = Place::new();
    let report = doctor(&place, &[]).success().json();
    assert_eq!(report["ok"], true);
    let findings = report["findings"].as_array().unwrap();
    for what in [
        "CPU kernels",
        "threads",
        "memory",
        "GPU driver",
        "NVRTC",
        "cache",
        "hub cache",
        "hub",
        "environment",
    ] {
        assert!(findings.iter().any(|f| f["what"] == what), "{what}: {report:#}");
    }
    // Every lack says what it costs and how to mend it.
    for lack in findings.iter().filter(|f| f["state"] == "lack") {
        assert!(lack["cost"].is_string() && lack["mend"].is_string(), "{lack:#}");
    }
    assert!(finding(&report, "hub", "lack")["found"].as_str().unwrap().contains("HF_HUB_OFFLINE"));
    let text = place.run("doctor").success().stdout;
    assert!(text.contains("CPU kernels") && text.contains("Models run on this CPU"), "{text}");
    assert_eq!(place.names(), ["model", "text.txt"], "a look leaves nothing");
}

#[test]
fn what_stops_every_command_is_a_fault_that_is_told_once() {
    let place = Place::new();
    for (variable, value, what) in [
        ("QQQ_ISA", "avx3", "CPU kernels"),
        ("QQQ_THREADS", "many", "threads"),
        ("QQQ_LOG", "dbug", "environment"),
    ] {
        let run = doctor(&place, &[(variable, value)]).failure(1, variable);
        let report = run.json();
        assert_eq!(report["ok"], false);
        let fault = finding(&report, what, "fault");
        assert!(fault["found"].as_str().unwrap().contains(value), "{fault:#}");
    }
}

#[test]
fn variables_that_nothing_reads_are_named() {
    let place = Place::new();
    let report = doctor(&place, &[("QQQ_THREAD", "2")]).success().json();
    assert!(finding(&report, "environment", "lack")["found"].as_str().unwrap().contains("QQQ_THREAD"));
}

#[test]
fn a_hub_that_says_nothing_holds_nobody_up() {
    let place = Place::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", silent.local_addr().unwrap());
    let report = doctor(&place, &[("HF_HUB_OFFLINE", "0"), ("HF_ENDPOINT", &address)]).success().json();
    assert!(finding(&report, "hub", "lack")["found"].as_str().unwrap().contains("does not answer"));
}
