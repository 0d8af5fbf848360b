//! Models whose arithmetic is simulated.

use qqq_backend::CpuBackend;
use qqq_cuda::CudaBackend;
use qqq_formats::{
    SimulatedMethod,
    simulated::{LlmInt8, Quik},
};
use qqq_quant::{Calibration, Recipe, Report};
use qqq_testing::TinyModel;

use super::corrected::mean_loss;
use super::tiny::quantized;

/// How far the result is from the float model: its simulated layers have run.
fn divergence(report: &Report) -> f64 {
    let quality = serde_json::to_value(report.quality.as_ref().unwrap()).unwrap();
    quality["kl_divergence"]["mean"].as_f64().unwrap()
}

pub fn models_are_simulated_as_on_the_cpu(b: CudaBackend) {
    let (cpu, tiny) = (CpuBackend::default(), TinyModel::new());
    let calibration = Calibration { windows: 8, window: 128, smooth_tokens: 128 };
    for method in [
        SimulatedMethod::LlmInt8(LlmInt8 { threshold: 2.0 }),
        SimulatedMethod::Quik(Quik { outliers: 0.125, ..Quik::default() }),
        SimulatedMethod::Quik(Quik { outliers: 0.125, outlier_bits: 8, ..Quik::default() }),
    ] {
        let recipe = Recipe { calibration, ..Recipe::simulating(method) };
        let ((report, _), (wanted, _)) = (quantized(&b, &tiny, &recipe), quantized(&cpu, &tiny, &recipe));
        let (got, want) = (mean_loss(&report), mean_loss(&wanted));
        assert!((got - want).abs() < 0.1, "{method}: mean log loss {got} instead of {want}");
        let (got, want) = (divergence(&report), divergence(&wanted));
        println!("{method}: KL divergence {got}, on the CPU {want}");
        // Beside 16-bit activations that of int8 layers is small.
        if method != SimulatedMethod::LlmInt8(LlmInt8 { threshold: 2.0 }) {
            assert!(got < 1.25 * want && want < 1.25 * got, "{method}: {got} instead of {want}");
        }
    }
}
