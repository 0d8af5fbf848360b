//! What a run would take, against the run.

mod common;

use std::fs;

use common::Place;

const LINE: &str = "quantize model --calibration text.txt --windows 4 --window 64 --json";

#[test]
fn nothing_is_written_and_the_disk_is_as_said() {
    let place = Place::new();
    for (options, out) in [
        ("", "a"),
        ("--transform smooth --smooth-tokens 32", "b"),
        ("--propagation float", "c"),
        ("--rule down_proj=int8 --rule self_attn=float", "d"),
        ("--activations half", "e"),
        ("--head int8", "f"),
    ] {
        let names = place.names();
        let needs = place.run(&format!("{LINE} {options} --dry-run -o {out}")).success().json();
        assert_eq!(place.names(), names, "nothing is written");
        place.run(&format!("{LINE} {options} -o {out}")).success();
        let files = fs::read_dir(place.path(out)).unwrap().map(|e| e.unwrap().metadata().unwrap().len());
        let (said, is) = (needs["output_bytes"].as_u64().unwrap(), files.sum::<u64>());
        // The files beside the tensors are taken to be 4 MiB, and are less here.
        assert!(said >= is && said - is < 5 << 20, "{said} said, {is} taken");
        let report: serde_json::Value = serde_json::from_str(
            &fs::read_to_string(place.path(out).join("quantization_report.json")).unwrap(),
        )
        .unwrap();
        assert_eq!(needs["linear_bytes"], report["linear_bytes"][1]);
        assert_eq!(needs["recipe"], report["recipe"]);
        assert_eq!(needs["memory_estimate"], report["memory_estimate"]);
        let [all, block, measured] =
            ["seconds", "block_seconds", "measured_seconds"].map(|name| needs[name].as_f64().unwrap());
        assert!(0.0 < block && block < measured && measured < all, "{needs:#}");
        assert_eq!(needs["blocks"], 2);
    }
}

/// What the first block takes says little of others, whose sizes follow from what they become.
#[test]
fn blocks_may_differ() {
    let place = Place::new();
    for (rules, out) in [("--rule layers.0=float", "a"), ("--rule layers.1=float --rule layers.0=int8", "b")]
    {
        let needs = place.run(&format!("{LINE} {rules} --dry-run")).success().json();
        place.run(&format!("{LINE} {rules} -o {out}")).success();
        let report = fs::read_to_string(place.path(out).join("quantization_report.json")).unwrap();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let said = needs["linear_bytes"].as_f64().unwrap() / report["linear_bytes"][1].as_f64().unwrap();
        assert!((0.95..1.05).contains(&said), "{rules}: {said}");
    }
}

#[test]
fn samples_are_not_made_and_no_output_need_be_named() {
    let place = Place::new();
    let line = "quantize model --dry-run --calibration self --windows 64 --window 512 --json";
    let needs = place.run(line).success().json();
    assert!(needs["output"].is_null());
    let text = place.run(&format!("{} --dry-run", LINE.replace(" --json", ""))).success().stdout;
    for row in ["time", "memory", "disk", "nothing was written"] {
        assert!(text.contains(row), "{text}");
    }
    assert_eq!(place.names(), ["model", "text.txt"]);
}

#[test]
fn what_a_run_refuses_is_refused() {
    let place = Place::new();
    place.run(&format!("{LINE} --dry-run -o model")).failure(2, "exists already");
    place.run(&format!("{LINE} --dry-run --group-size 48")).failure(2, "48");
    for (line, says) in
        [(LINE.to_owned(), "--output"), (format!("{LINE} --dry-run --report r.json"), "--report")]
    {
        let run = place.run(&line);
        assert!(run.code == Some(2) && run.stderr.contains(says), "{}", run.stderr);
    }
    let wide = LINE.replace("--window 64", "--window 4096");
    place.run(&format!("{wide} --dry-run")).failure(2, "longer than the model's context");
}
