use clap::Parser;
use qqq_formats::{
    SimulatedMethod,
    simulated::{LlmInt8, Quik, Quip, SpQr},
};

use super::*;
use crate::errors::Failure;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    amount: AmountArgs,
    #[arg(long)]
    calibration: Option<String>,
}

#[test]
fn no_options_give_the_default_recipe() {
    let line = Line::parse_from(["qqq"]);
    assert_eq!(line.recipe.recipe(&line.amount, line.calibration.is_none()).unwrap(), Recipe::DEFAULT);
}

fn recipe(options: &str) -> Result<Recipe, String> {
    let line = Line::parse_from(["qqq"].into_iter().chain(options.split_whitespace()));
    line.recipe.recipe(&line.amount, line.calibration.is_none()).map_err(|e| e.to_string())
}

#[test]
fn every_option_arrives() {
    let want = Recipe {
        transform: Transform::Smooth,
        group_size: None,
        clip: Clip::None,
        act_order: false,
        damping: 0.5,
        value_hessian: ValueHessian::Input,
        propagation: Propagation::Float,
        error_correction: 0.0,
        calibration: Calibration { windows: 3, window: 64, smooth_tokens: 32 },
        seed: 7,
        ..Recipe::DEFAULT
    };
    let options = "--transform smooth --group-size channel --clip none --no-act-order --damping 0.5 --value-hessian \
                   input --propagation float --seed 7 --windows 3 --window 64 --smooth-tokens 32";
    assert_eq!(recipe(options), Ok(want));
    // Who names a matrix asks for the rotation.
    let want = Recipe {
        transform: Transform::Rotate,
        rotation: RotationKind::Orthogonal,
        group_scales: GroupScales::Half,
        compensate: false,
        error_correction: 0.0,
        ..Recipe::DEFAULT
    };
    let options = "--rotation orthogonal --group-scales half --method rtn --clip output";
    assert_eq!(recipe(options), Ok(want));
    let want = Recipe { compensate: false, clip: Clip::Weight, error_correction: 0.25, ..Recipe::DEFAULT };
    assert_eq!(recipe("--error-correction 0.25 --method rtn"), Ok(want));
    let auto = Recipe { transform: Transform::Auto, seed: 1, ..Recipe::DEFAULT };
    assert_eq!(recipe("--transform auto --seed 1"), Ok(auto));
}

#[test]
fn rounding_to_nearest_reads_no_text_unless_asked() {
    let windows = |options: &str| recipe(options).unwrap().calibration.windows;
    for (options, want) in [
        ("--method rtn --clip none", 0),
        ("--method rtn --clip weight --transform none", 0),
        ("--method rtn", 0),
        ("--method rtn --clip output", 32),
        ("--method rtn --clip none --transform smooth", 1),
        ("--method rtn --transform smooth", 1),
        ("--method rtn --transform smooth --calibration x", 32),
        ("--clip weight", 32),
        ("--method rtn --error-correction 0.5", 32),
        ("--method rtn --clip none --window 64", 32),
        ("--method rtn --clip none --windows 4", 4),
        ("--windows 4", 4),
        ("", 32),
    ] {
        assert_eq!(windows(options), want, "{options}");
    }
}

#[test]
fn scales_are_chosen_as_the_method_can() {
    for (options, want) in [
        ("", Clip::Output),
        ("--method rtn", Clip::Weight),
        ("--method rtn --calibration x", Clip::Weight),
        ("--method rtn --clip output", Clip::Output),
        ("--method rtn --clip none", Clip::None),
        ("--clip weight", Clip::Weight),
    ] {
        assert_eq!(recipe(options).unwrap().clip, want, "{options}");
    }
}

#[test]
fn errors_are_corrected_where_text_is_looked_at_anyway() {
    for (options, want) in [
        ("", Recipe::DEFAULT.error_correction),
        ("--transform smooth --clip none", Recipe::DEFAULT.error_correction),
        ("--error-correction 0", 0.0),
        ("--error-correction 0.25", 0.25),
        ("--propagation float", 0.0),
        ("--method rtn", 0.0),
        ("--method rtn --clip output", 0.0),
        ("--method rtn --error-correction 1", 1.0),
    ] {
        assert_eq!(recipe(options).unwrap().error_correction, want, "{options}");
    }
}

#[test]
fn options_that_would_do_nothing_are_refused() {
    for (options, option, why) in [
        ("--transform smooth --rotation hadamard", "--rotation", "--transform rotate"),
        ("--transform none --rotation orthogonal", "--rotation", "--transform rotate"),
        ("--smooth-tokens 512", "--smooth-tokens", "--transform smooth"),
        ("--group-scales integer --group-size channel", "--group-scales", "--group-size 32"),
        ("--group-scales integer --bits 8", "--group-scales", "--group-size 32"),
        ("--group-scales half --activations half", "--group-scales", "--activations half"),
        ("--method rtn --damping 0.01", "--damping", "--method rtn"),
        ("--method rtn --no-act-order", "--no-act-order", "--method rtn"),
        ("--method rtn --value-hessian input", "--value-hessian", "--clip output"),
        ("--method rtn --clip weight --value-hessian input", "--value-hessian", "--clip output"),
        ("--method rtn --clip none --propagation float", "--propagation", "--clip output"),
        ("--method rtn --clip none --windows 0 --window 64", "--window", "--windows"),
        ("--method rtn --clip none --windows 0 --transform none --seed 1", "--seed", "--windows"),
        ("--method rtn --clip weight --transform none --seed 1", "--seed", "--windows"),
        ("--transform smooth --window 64 --smooth-tokens 65", "--smooth-tokens 65", "which has 64"),
    ] {
        let error = recipe(options).unwrap_err();
        assert!(error.starts_with(option) && error.contains(why), "{options}: {error}");
    }
    for good in [
        "--transform rotate --rotation orthogonal",
        "--transform smooth --smooth-tokens 64 --window 64",
        // Both are tried.
        "--transform auto --smooth-tokens 512 --rotation orthogonal",
        "--method rtn --clip output --value-hessian input --propagation float",
        "--method rtn --clip none --windows 0 --seed 1",
        "--method rtn --clip none --windows 4 --window 64",
        // A default that does not fit is not one that was given.
        "--transform none --group-size channel --method rtn --clip none",
        "--transform smooth --window 64",
        "--group-size channel --rule down_proj=int4:g64 --group-scales half",
        "--bits 8 --group-size channel",
    ] {
        assert!(recipe(good).is_ok(), "{good}: {:?}", recipe(good));
    }
}

#[test]
fn what_needs_text_is_named_with_its_way_out() {
    for (options, named, hint) in [
        ("--method rtn --clip output", "--clip output", "give --clip weight or none; or leave --windows out"),
        ("--clip none", "--method gptq", "give --method rtn; or leave --windows out"),
        (
            "--method rtn --clip weight --transform smooth",
            "--transform smooth",
            "give another --transform; or leave --windows out",
        ),
        (
            "--method rtn --error-correction 1",
            "--error-correction",
            "give --error-correction 0; or leave --windows out",
        ),
        (
            "",
            "--method gptq and --clip output",
            "give --method rtn, and --clip weight or none; or leave --windows out",
        ),
    ] {
        let line = Line::parse_from(["qqq", "--windows", "0"].into_iter().chain(options.split_whitespace()));
        let failure = Failure::of(&line.recipe.recipe(&line.amount, line.calibration.is_none()).unwrap_err());
        let message = format!("--windows 0 leaves no calibration text, which {named} cannot do without");
        assert_eq!((failure.message, failure.hint.as_deref()), (message, Some(hint)), "{options}");
    }
    assert!(recipe("--windows 0 --method rtn --clip weight").is_ok());
}

#[test]
fn a_correction_that_cannot_be_is_refused() {
    for strength in ["-0.1", "1.5", "NaN", "inf"] {
        let error = recipe(&format!("--error-correction {strength}")).unwrap_err();
        assert!(error.starts_with("--error-correction must be a number from 0 to 1"), "{error}");
    }
    let error = recipe("--error-correction 0.5 --propagation float").unwrap_err();
    assert!(error.contains("--propagation float"), "{error}");
    assert!(recipe("--error-correction 0 --propagation float").is_ok());
}

#[test]
fn precisions_arrive() {
    let eight = recipe("--bits 8").unwrap();
    assert_eq!((eight.bits, eight.group_size), (CodeBits::Eight, None));
    let half = recipe("--activations half --group-size 128").unwrap();
    assert_eq!((half.activations, half.bits), (Activations::Half, CodeBits::Four));
    let rules = recipe("--rule down_proj=int8 --rule layers.0=float").unwrap().rules;
    assert_eq!(rules.iter().map(Rule::to_string).collect::<Vec<_>>(), ["down_proj=int8", "layers.0=float"]);
    assert!(recipe("--bits 8 --group-size 64").unwrap_err().contains("no groups of 64"));
    for (rule, says) in [("down_proj", "has no precision"), ("down_proj=int3", "int4:g32")] {
        let error = Line::try_parse_from(["qqq", "--rule", rule]).map(drop).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_random_seed_is_drawn() {
    let seeds: Vec<u64> = (0..3).map(|_| recipe("--seed -1").unwrap().seed).collect();
    assert!(seeds.iter().any(|s| *s != seeds[0]), "{seeds:?}");
}

#[test]
fn published_recipes_have_their_papers_options() {
    for (options, want) in [
        ("--recipe fp16", RecipeName::Fp16),
        ("--recipe rtn --bits 8", RecipeName::Rtn),
        ("--recipe smoothquant --alpha 0.8 --windows 4 --window 64", RecipeName::SmoothQuant),
        ("--recipe os+ --bits 4", RecipeName::OsPlus),
        ("--recipe gptq --group-size 64 --damping 0.1 --no-act-order", RecipeName::Gptq),
        ("--recipe awq --group-size 64 --calibration x", RecipeName::Awq),
        ("--recipe omniquant --epochs 2 --activations half --group-size 64", RecipeName::OmniQuant),
        ("--recipe qqq --smooth-tokens 256", RecipeName::Qqq),
        ("--recipe qqq-g128", RecipeName::QqqG128),
        ("--recipe qqq-rot --rotation orthogonal", RecipeName::QqqRot),
        ("--recipe llm-int8 --outlier-threshold 5 --calibration x", RecipeName::LlmInt8),
        (
            "--recipe quik --bits 8 --down-bits 4 --outliers 0.1 --outlier-bits 8 --damping 0.1",
            RecipeName::Quik,
        ),
        ("--recipe spqr --bits 4 --beta1 32 --beta2 64 --statistics-bits 16", RecipeName::SpQr),
        ("--recipe quip --bits 3 --greedy 10 --rho 3 --no-incoherence", RecipeName::Quip),
    ] {
        assert_eq!(recipe(options).unwrap().name, want, "{options}");
    }
    for (options, option, name) in [
        ("--recipe awq --clip output", "--clip", "awq"),
        ("--recipe fp16 --windows 1", "--windows", "fp16"),
        ("--recipe gptq --transform rotate", "--transform", "gptq"),
        ("--recipe gptq --activations int8", "--activations", "gptq"),
        ("--recipe smoothquant --bits 4", "--bits", "smoothquant"),
        ("--recipe os+ --alpha 0.5", "--alpha", "os+"),
        ("--recipe rtn --rule down_proj=int8", "--rule", "rtn"),
        ("--recipe qqq --error-correction 1", "--error-correction", "qqq"),
        ("--recipe awq --group-size channel", "--group-size channel", "awq"),
        ("--recipe awq --epochs 3", "--epochs", "awq"),
        ("--recipe omniquant --clip none", "--clip", "omniquant"),
        ("--epochs 3", "--epochs", "best"),
        ("--alpha 0.5", "--alpha", "best"),
        ("--greedy 3", "--greedy", "best"),
        ("--no-incoherence", "--no-incoherence", "best"),
        ("--recipe spqr --outliers 0.1", "--outliers", "spqr"),
        ("--recipe quik --outlier-threshold 6", "--outlier-threshold", "quik"),
        ("--recipe llm-int8 --bits 4", "--bits", "llm-int8"),
        ("--recipe quip --rule down_proj=int8", "--rule", "quip"),
        ("--recipe quip --propagation float", "--propagation", "quip"),
        ("--recipe spqr --group-size 32", "--group-size", "spqr"),
        ("--recipe quik --bits 5", "--bits is 5, but must be 4 or 8", "quik"),
        ("--recipe spqr --bits 12", "--bits is 12, but must be from 2 to 8", "spqr"),
        ("--recipe spqr --beta1 1", "--beta1 is 1", "spqr"),
        ("--recipe spqr --outlier-threshold -1", "--outlier-threshold is -1", "spqr"),
        ("--recipe quip --rho NaN", "--rho is NaN", "quip"),
        ("--bits 3", "--bits 3", "best"),
        ("--recipe gptq --bits 3", "--bits 3", "gptq"),
    ] {
        let error = recipe(options).unwrap_err();
        assert!(error.starts_with(option) && error.contains(name), "{options}: {error}");
    }
    assert!(recipe("--recipe rtn --seed 1").unwrap_err().starts_with("--seed does nothing"));
    assert!(recipe("--recipe awq --windows 0").unwrap_err().contains("--recipe awq cannot do without"));
    for wrong in ["--recipe omni", "--alpha 1.5", "--alpha much", "--bits 1", "--recipe quip:bits=3"] {
        assert!(Line::try_parse_from(["qqq"].into_iter().chain(wrong.split(' '))).is_err(), "{wrong}");
    }
}

#[test]
fn published_recipes_take_their_papers_text_or_what_is_built_in() {
    let amount = |options: &str| {
        let Calibration { windows, window, .. } = recipe(options).unwrap().calibration;
        (windows, window)
    };
    for (options, want) in [
        ("--recipe gptq --calibration x", (128, 2048)),
        ("--recipe gptq", (32, 2048)),
        ("--recipe awq", (128, 512)),
        ("--recipe smoothquant --calibration x", (512, 512)),
        ("--recipe smoothquant", (128, 512)),
        ("--recipe smoothquant --window 1024", (64, 1024)),
        ("--recipe smoothquant --windows 300", (300, 512)),
        ("--recipe rtn", (0, 2048)),
        ("--recipe rtn --window 64", (32, 64)),
        ("--recipe rtn --calibration x", (32, 2048)),
    ] {
        assert_eq!(amount(options), want, "{options}");
    }
    let strength = |options: &str| recipe(options).unwrap().migration_strength;
    assert_eq!(strength("--recipe smoothquant"), Some(0.5));
    assert_eq!(strength("--recipe smoothquant --alpha 0.75"), Some(0.75));
    assert_eq!(strength("--recipe smoothquant --alpha search"), None);
}

#[test]
fn simulated_methods_have_their_papers_parameters() {
    let simulated = |options: &str| recipe(options).unwrap().simulated.unwrap();
    let damping = 0.5;
    for (options, want) in [
        ("--recipe llm-int8", SimulatedMethod::LlmInt8(LlmInt8::default())),
        ("--recipe llm-int8 --outlier-threshold 5", SimulatedMethod::LlmInt8(LlmInt8 { threshold: 5.0 })),
        ("--recipe quik", SimulatedMethod::Quik(Quik::default())),
        (
            "--recipe quik --bits 8 --down-bits 4 --outliers 0.1 --outlier-bits 8 --damping 0.5",
            SimulatedMethod::Quik(Quik { bits: 8, down_bits: 4, outliers: 0.1, outlier_bits: 8, damping }),
        ),
        ("--recipe spqr", SimulatedMethod::SpQr(SpQr::default())),
        (
            "--recipe spqr --bits 4 --beta1 32 --beta2 64 --statistics-bits 5 --outlier-threshold inf --damping 0.5",
            SimulatedMethod::SpQr(SpQr {
                bits: 4,
                group: 32,
                statistics_bits: 5,
                statistics_group: 64,
                threshold: f64::INFINITY,
                damping,
            }),
        ),
        ("--recipe quip", SimulatedMethod::Quip(Quip::default())),
        (
            "--recipe quip --bits 3 --greedy 10 --rho 3 --no-incoherence --damping 0.5",
            SimulatedMethod::Quip(Quip { bits: 3, incoherence: false, greedy: 10, rho: 3.0, damping }),
        ),
    ] {
        assert_eq!(simulated(options), want, "{options}");
    }
    let Recipe { calibration, seed, .. } = recipe("--recipe quip --windows 2 --window 64 --seed 5").unwrap();
    assert_eq!((calibration.windows, calibration.window, seed), (2, 64, 5));
    // It looks at no text unless somebody names one.
    let windows = |options: &str| recipe(options).unwrap().calibration.windows;
    assert_eq!(windows("--recipe llm-int8"), 0);
    assert_eq!(windows("--recipe llm-int8 --window 64"), 32);
    assert_eq!(windows("--recipe spqr"), 32);
    assert_eq!(windows("--recipe spqr --calibration x"), 128);
    for name in ["quik", "spqr", "quip"] {
        let error = recipe(&format!("--recipe {name} --windows 0")).unwrap_err();
        assert!(error.contains(&format!("--recipe {name} cannot do without")), "{error}");
    }
}

#[test]
fn options_of_papers_are_named_with_their_recipes() {
    for (options, owners) in [
        ("--alpha 0.5", "smoothquant"),
        ("--epochs 3", "omniquant"),
        ("--outlier-threshold 6", "llm-int8 and spqr"),
        ("--outliers 0.1", "quik"),
        ("--outlier-bits 8", "quik"),
        ("--down-bits 4", "quik"),
        ("--beta1 16", "spqr"),
        ("--beta2 16", "spqr"),
        ("--statistics-bits 3", "spqr"),
        ("--greedy 3", "quip"),
        ("--rho 3", "quip"),
        ("--no-incoherence", "quip"),
    ] {
        let line = Line::parse_from(["qqq"].into_iter().chain(options.split_whitespace()));
        let failure = Failure::of(&line.recipe.recipe(&line.amount, true).unwrap_err());
        assert_eq!(failure.hint, Some(format!("it is that of --recipe {owners}")), "{options}");
    }
    assert_eq!(PaperArgs::OPTIONS.len(), 12, "all are above");
}

#[test]
fn the_table_has_every_recipe() {
    let table = table();
    assert!(RecipeName::all().all(|name| table.contains(&format!("\n  {:<12} ", name.word()))), "{table}");
}
