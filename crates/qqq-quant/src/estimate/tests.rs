use super::*;
use crate::shapes;
use qqq_backend::{Calibrate, CpuBackend};

fn estimated(config: &ModelConfig, recipe: &Recipe, slowness: &Slowness, pieces: Pieces) -> Estimate {
    let schemes = Schemes::of(config, recipe).unwrap();
    Estimate::new(config, recipe, &schemes, HeldText::default(), &Source::BuiltIn, slowness, pieces)
}

/// Whole runs on the machine of the rates.
#[test]
fn runs_take_what_is_expected() {
    let slowness = Slowness::of_host(1.0, 1.0, 1.0);
    for (config, seconds) in [(shapes::smollm2(), 70.0), (shapes::llama_7b(2), 233.0)] {
        let recipe = Recipe { transform: Transform::Rotate, error_correction: 0.0, ..Recipe::DEFAULT };
        let estimate = estimated(&config, &recipe, &slowness, CpuBackend::PIECES);
        let expected: f64 = estimate.plan(config.num_layers).iter().sum();
        assert!((0.8..1.25).contains(&(expected / seconds)), "{expected} instead of {seconds}");
    }
}

#[test]
fn a_device_searches_whatever_the_host_does() {
    let recipe = Recipe { transform: Transform::Smooth, error_correction: 0.0, ..Recipe::DEFAULT };
    let seconds = |moves, on_host| {
        let pieces = Pieces { on_host, ..CpuBackend::PIECES };
        let slowness = Slowness { moves, ..Slowness::of_host(1e-3, 1e-3, 1e-3) };
        estimated(&shapes::llama_7b(2), &recipe, &slowness, pieces).smooth_site.amount
    };
    assert_eq!(seconds(1.0, false), seconds(5.0, false));
    assert!(seconds(1.0, false) < 0.5 * seconds(1.0, true), "{}", seconds(1.0, false));
    assert!(seconds(5.0, true) > seconds(1.0, true));
}

#[test]
fn a_slower_machine_takes_longer() {
    let seconds = |slowness| {
        let config = shapes::wide();
        let recipe = Recipe { transform: Transform::Rotate, error_correction: 0.0, ..Recipe::DEFAULT };
        let estimate = estimated(&config, &recipe, &slowness, CpuBackend::PIECES);
        estimate.plan(config.num_layers).iter().sum::<f64>()
    };
    let usual = seconds(Slowness::of_host(1.0, 1.0, 1.0));
    let slow = seconds(Slowness::of_host(2.0, 2.0, 2.0));
    // What opens and reads texts is not tried.
    assert!((slow - 2.0 * usual).abs() < 1.0, "{slow} {usual}");
    for slowness in
        [Slowness::of_host(2.0, 1.0, 1.0), Slowness::of_host(1.0, 2.0, 1.0), Slowness::of_host(1.0, 1.0, 2.0)]
    {
        assert!((1.05 * usual..slow).contains(&seconds(slowness)), "{slowness:?}");
    }
}
