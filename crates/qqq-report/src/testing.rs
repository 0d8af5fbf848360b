//! A report for tests.

use qqq_quant::Report;
use serde_json::json;

/// Of two blocks of two layers with four channels, smoothed, with what is to be escaped in its names.
pub(crate) fn report() -> Report {
    let layer = |block: usize, module: &str, loss: f64| {
        json!({
            "name": format!("model.layers.{block}.{module}"), "precision": "int4:g64", "out_features": 8, "in_features": 4,
            "loss_nearest": 2.0 * loss, "loss": loss, "weight_error": loss.sqrt(),
            "damping": 0.01, "dead_channels": 0, "scale_range": [0.001, 0.002],
        })
    };
    let value = json!({
        "version": "0.1.0", "model": "./models/<b>&Co", "format": "compressed-tensors",
        "recipe": serde_json::to_value(qqq_quant::Recipe::DEFAULT).unwrap(),
        "calibration_data": "wiki.txt", "calibration_tokens": 4096,
        "layers": [
            layer(0, "self_attn.qkv_proj", 0.01), layer(0, "mlp.down_proj", 0.02),
            layer(1, "self_attn.qkv_proj", 0.03), layer(1, "mlp.down_proj", 0.04),
        ],
        "smoothing": [
            { "site": "model.layers.0.self_attn.qkv_proj", "sigma": 2.0, "smoothed_channels": 0, "loss_before": 0.3,
              "loss_after": 0.3 },
            { "site": "model.layers.1.self_attn.qkv_proj", "sigma": 2.0, "smoothed_channels": 1, "loss_before": 0.3,
              "loss_after": 0.2, "curve": [[1.0, 0.5], [2.0, 0.2], [3.0, 0.25], [4.0, 0.3]] },
        ],
        "quality": {
            "text": "wiki.txt", "windows": 2, "tokens": 100, "max_kld": 4.0, "is_beyond": false,
            "kl_divergence": { "mean": 0.1234, "standard_error": 0.01 },
            "top1_agreement": { "mean": 0.85, "standard_error": null },
            "perplexity_ratio": { "mean": 1.05, "standard_error": 0.002 },
            "baseline_perplexity": 20.0, "perplexity": 21.0,
        },
        "warnings": ["less than <enough>"],
        "timings": { "transform": 1.0, "calibrate": 2.0, "solve": 3.0, "write": 0.5, "total": 130.0 },
        "linear_bytes": [100, 30],
    });
    let mut report: Report = serde_json::from_value(value).unwrap();
    let reach = |block: usize, module: &str, float: [f32; 4], quantized: [f32; 4]| {
        json!({
            "name": format!("model.layers.{block}.{module}"), "channels": 4,
            "float": { "largest": float, "median": 1.0 }, "quantized": { "largest": quantized, "median": 1.0 },
        })
    };
    report.activations = serde_json::from_value(json!([
        reach(0, "self_attn.qkv_proj", [1.0, 1.0, 9.0, 1.0], [1.0, 1.0, 3.0, 1.0]),
        reach(0, "mlp.down_proj", [1.0, 30.0, 1.0, 1.0], [1.0, 20.0, 1.0, 1.0]),
        reach(1, "self_attn.qkv_proj", [1.0, 1.0, 12.0, 1.0], [1.0, 1.0, 2.0, 1.0]),
        reach(1, "mlp.down_proj", [1.0, 400.0, 1.0, 1.0], [1.0, 20.0, 1.0, 1.0]),
    ]))
    .unwrap();
    report
}
