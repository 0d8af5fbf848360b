//! Recipes whose arithmetic is simulated, from command to command.

mod common;

use std::fs;

use common::Place;
use serde_json::Value;

/// With the bits for a weight that they would store, from and to.
const RECIPES: [(&str, &str, f64, f64); 6] = [
    ("llm-int8", "--outlier-threshold 1.5", 8.0, 8.5),
    ("quik", "--outliers 0.125", 5.0, 8.0),
    ("quik", "--outliers 0.25 --outlier-bits 8", 5.0, 8.0),
    ("spqr", "--bits 4 --statistics-bits 4", 4.5, 8.0),
    ("quip", "--bits 4", 4.0, 4.6),
    ("quip", "--bits 3 --no-incoherence --greedy 2 --rho 4", 3.0, 3.1),
];

const TEXT: &str = "--calibration text.txt --windows 4 --window 128";

fn quantize(place: &Place, recipe: &str, options: &str, out: &str) -> Value {
    place.run(&format!("quantize model -o {out} {TEXT} --recipe {recipe} {options} --json")).success().json()
}

#[test]
fn everything_says_that_they_are_simulated() {
    let place = Place::new();
    for (i, (recipe, options, least, most)) in RECIPES.into_iter().enumerate() {
        let out = format!("out{i}");
        let made = quantize(&place, recipe, options, &out);
        let report = &made["report"];
        assert_eq!(report["format"], "qqq-simulated", "{recipe}");
        assert_eq!(report["recipe"]["name"], recipe);
        assert_eq!(report["recipe"]["simulated"]["recipe"], recipe);
        assert!(report["float_layers"].is_null(), "{recipe}");

        let inspected = place.run(&format!("inspect {out} --json")).success().json();
        let quantization = &inspected["quantization"];
        assert_eq!(quantization["simulated"], report["recipe"]["simulated"], "{recipe}");
        let bits = quantization["simulated_bits_per_weight"].as_f64().unwrap();
        assert!((least..=most).contains(&bits), "{recipe}: {bits} bits");
        let said = format!("{bits:.2} bits per weight");
        let inspected = place.run(&format!("inspect {out}")).success().stdout;
        assert!(
            inspected.contains(&format!("simulated: {recipe} (")) && inspected.contains(&said),
            "{inspected}"
        );
        let card = fs::read_to_string(place.path(&out).join("README.md")).unwrap();
        assert!(card.contains(&format!("# model, {recipe} simulated")) && card.contains(&said), "{card}");
        let generated = place.run(&format!("generate {out} --raw --prompt once -n 3")).success();
        assert!(
            generated.stderr.contains(&format!("arithmetic of {recipe} is simulated")),
            "{}",
            generated.stderr
        );

        // What was measured at the end of the run is what an evaluation of the same text says.
        let quality = &report["quality"];
        assert!(quality["tokens"].as_u64().unwrap() > 200, "{quality}");
        let line = format!("eval kld {out} --baseline model --text text.txt --window 128 --limit 8 --json");
        let kld = place.run(&line).success().json();
        assert_eq!(kld["simulated"], recipe);
        let of = |value: &Value| value["kl_divergence"]["mean"].as_f64().unwrap();
        let (measured, evaluated) = (of(quality), of(&kld));
        assert!(
            measured > 0.0 && measured < 3.0 * evaluated && evaluated < 3.0 * measured,
            "{recipe}: {quality} {kld}"
        );
    }
    let made = place.run(&format!("quantize model -o told {TEXT} --recipe quik")).success();
    assert!(
        made.stderr.lines().next().unwrap().starts_with("recipe quik, simulated, on text.txt"),
        "{}",
        made.stderr
    );
    for row in ["recipe", "simulated", "KL divergence"] {
        assert!(made.stdout.lines().any(|line| line.starts_with(row)), "{row}: {}", made.stdout);
    }
}

#[test]
fn a_dry_run_says_what_a_run_takes() {
    let place = Place::new();
    for (i, (recipe, options, ..)) in RECIPES.into_iter().enumerate() {
        let out = format!("out{i}");
        let line = format!("quantize model {TEXT} --recipe {recipe} {options} --json");
        let needs = place.run(&format!("{line} --dry-run")).success().json();
        let report = quantize(&place, recipe, options, &out)["report"].clone();
        assert_eq!(needs["recipe"], report["recipe"]);
        assert_eq!(needs["memory_estimate"], report["memory_estimate"]);
        assert_eq!(needs["linear_bytes"], report["linear_bytes"][1]);
        assert_eq!(needs["format"], "qqq-simulated");
        let files = fs::read_dir(place.path(&out)).unwrap().map(|e| e.unwrap().metadata().unwrap().len());
        let (said, is) = (needs["output_bytes"].as_u64().unwrap(), files.sum::<u64>());
        assert!(said >= is && said - is < 5 << 20, "{said} said, {is} taken");
    }
}

#[test]
fn the_gate_holds_them_too() {
    let place = Place::new();
    let line = format!("quantize model {TEXT} --recipe quip");
    let run = place.run(&format!("{line} -o out --max-kld 1e-9")).failure(1, "too far from the float model");
    let hint = "try more bits (--bits), the tool's own recipe (--recipe best), more text";
    assert!(run.stderr.contains(hint) && !run.stderr.contains("--group-size"), "{}", run.stderr);
    assert!(place.names().contains(&"out.failed-gate".to_owned()), "{:?}", place.names());
    let inspected = place.run("inspect out.failed-gate --json").success().json();
    assert_eq!(inspected["quantization"]["simulated"]["recipe"], "quip");
    place.run(&format!("{line} -o out --max-kld off")).success();
}

#[test]
fn what_has_no_place_for_them_refuses_them() {
    let place = Place::new();
    quantize(&place, "quik", "", "quik");
    quantize(&place, "spqr", "", "spqr");
    let names = place.names();
    for out in ["quik", "spqr"] {
        let run = place.run(&format!("bench model {out}")).failure(2, "is simulated");
        assert!(run.stderr.contains("says nothing of the method's speed"), "{}", run.stderr);
        for target in ["w4a8", "gptq", "compressed-tensors"] {
            place
                .run(&format!("convert {out} -o other --to {target}"))
                .failure(2, &format!("the arithmetic of {out} is simulated"));
        }
        place.run(&format!("quantize {out} -o other {TEXT}")).failure(2, "quantized already");
    }
    let line = format!("quantize model -o other {TEXT}");
    for (options, says) in [
        ("--recipe quik --rule down_proj=int8", "--rule: recipe quik (arXiv 2310.09259) has no such option"),
        ("--recipe spqr --format qqq", "a form of its own"),
        ("--recipe spqr --group-size 32", "it has --outlier-threshold, --beta1, --beta2"),
        ("--recipe quip:bits=3", "there is no recipe"),
        ("--recipe quip --held-out 0 --max-kld 1", "--held-out 0 leaves none"),
        ("--beta1 16", "it is that of --recipe spqr"),
        ("--recipe quik --outlier-bits 4", "--outlier-bits is 4, but must be 8 or 16, with --recipe quik"),
        ("--outlier-bits 8", "it is that of --recipe quik"),
    ] {
        let run = place.run(&format!("{line} {options}")).failure(2, "");
        assert!(run.stderr.contains(says), "{options}: {}", run.stderr);
    }
    assert_eq!(place.names(), names);
}
