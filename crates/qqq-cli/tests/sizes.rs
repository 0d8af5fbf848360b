//! What is said of sizes and memory.

mod common;

use common::Place;

#[test]
fn one_layer_has_one_size_everywhere() {
    let place = Place::new();
    let before = place.run("inspect model --json").success().json();
    for (out, options) in [
        ("grouped", ""),
        ("channels", "--group-size channel --format compressed-tensors"),
        ("tied", "--transform none --group-size 32"),
    ] {
        let line =
            format!("quantize model -o {out} --calibration text.txt --windows 4 --window 128 {options}");
        let shown = place.run(&line).success();
        let report: serde_json::Value =
            serde_json::from_slice(&std::fs::read(place.path(out).join("quantization_report.json")).unwrap())
                .unwrap();
        let after = place.run(&format!("inspect {out} --json")).success().json();
        let bytes = |inspected: &serde_json::Value, total: &str| inspected["totals"][total].as_u64().unwrap();
        let text = place.run(&format!("inspect {out} --summary")).success().stdout;
        let card = std::fs::read_to_string(place.path(out).join("README.md")).unwrap();
        for (field, total, row) in [
            ("linear_bytes", "block_linear_bytes", "linear layers"),
            ("tensor_bytes", "bytes", "all tensors"),
        ] {
            let (before, after) = (bytes(&before, total), bytes(&after, total));
            assert_eq!(report[field], serde_json::json!([before, after]), "{out}");
            // Sizes as they are printed: of the result by all, of the source where both are.
            let line = shown.stdout.lines().find(|l| l.starts_with(row)).unwrap();
            let sizes = line[row.len()..].trim().to_owned();
            let (result, source) = sizes.split_once(", before ").unwrap();
            let inspected = text.lines().find(|l| l.starts_with(row)).unwrap();
            assert!(inspected.contains(&format!(", {result}, ")), "{inspected} of {result}");
            let source_text = place.run("inspect model --summary").success().stdout;
            let inspected = source_text.lines().find(|l| l.starts_with(row)).unwrap();
            assert!(inspected.contains(&format!(", {source}, ")), "{inspected} of {source}");
            assert!(card.to_lowercase().contains(&format!("| {row} | {}", sizes.to_lowercase())), "{card}");
        }
        let line = shown.stdout.lines().find(|l| l.starts_with("embedding and head")).unwrap();
        assert!(line.contains("before") && line.contains("16 bits"), "{line}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn memory_is_told_before_and_after() {
    let place = Place::new();
    let run = place.run("quantize model -o out --calibration text.txt --windows 4 --window 128").success();
    let note = run.stderr.lines().find(|l| l.contains("memory: about")).expect("a line about memory");
    assert!(note.contains("MB at most") && note.contains("free"), "{note}");
    let line = run.stdout.lines().find(|l| l.starts_with("memory")).unwrap();
    assert!(line.contains("at most (estimated: "), "{line}");
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(place.path("out/quantization_report.json")).unwrap()).unwrap();
    let (peak, estimate) =
        (report["peak_memory"].as_u64().unwrap(), report["memory_estimate"].as_u64().unwrap());
    // A tiny model: the program is nearly all of it.
    assert!(peak > 10_000_000 && peak < 3 * estimate, "{peak} {estimate}");

    // By stage in the log.
    let mut command = place.command();
    command.args("quantize model -o again --calibration text.txt --windows 4 --window 128".split(' '));
    let run = common::Run::of(command.env("QQQ_LOG", "qqq=debug").output().unwrap()).success();
    for stage in ["calibrating qkv", "solving mlp.down_proj", "writing"] {
        let found = run.stderr.lines().any(|l| l.contains("resident_mb=") && l.contains(stage));
        assert!(found, "{stage}: {}", run.stderr);
    }
}
