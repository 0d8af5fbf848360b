//! How much of a device's own memory a run will take at most, from shapes and recipe alone.

use qqq_formats::{ModelConfig, SimulatedMethod};
use qqq_model::{Site, block::head_layout, scores::rows_at_a_time};

use crate::{
    Propagation, Recipe, Schemes,
    held_out::HeldText,
    layer_bytes,
    memory_need::{DEVICE_LIBRARIES, rotation_bytes},
    recipes::omniquant,
};

/// What a device's allocator holds between what is in use.
const RETAINED: f64 = 1.1;

/// Rows of weights that a device moves at a time where they are corrected.
const MOVED_ROWS: f64 = 2048.0;

/// Rows that a device multiplies at a time where the arithmetic is simulated.
const SIMULATED_ROWS: f64 = 1024.0;

/// Bytes of a device's own memory that calibration takes at most on it, to some percent: hidden states of all tokens, the
/// int8 inputs of the layer that is calibrated, what a window works in, and the layer that takes most to solve, or the search
/// for the scales of smoothing. Where weights are corrected, states and inputs of the float model as well. What is held out has
/// states in both models, and both output heads at the end.
pub(crate) fn bytes(config: &ModelConfig, recipe: &Recipe, schemes: &Schemes, held: HeldText) -> u64 {
    let tokens = (recipe.calibration.windows * recipe.calibration.window) as f64;
    let window = recipe.calibration.window as f64;
    let (hidden, inner) = (config.hidden_size as f64, config.intermediate_size as f64);
    let heads = head_layout(config);
    let smooth = recipe.transform.scales_channels();
    let (searched_windows, searched) = recipe.transform_amount();
    let searched = searched_windows * searched;
    let corrects = recipe.corrects();
    let streams = if corrects { 2.0 } else { 1.0 };
    let held_states = 8.0 * held.tokens() * hidden;
    let states =
        4.0 * (streams * tokens + searched as f64) * hidden + held_states + rotation_bytes(config, recipe);
    let longest = if held.windows > 0 { window.max(held.window as f64) } else { window };
    let pass = longest * (2.0 * (heads.qkv_width() + heads.q_width()) as f64 + 8.0 * inner + 10.0 * hidden);
    let weights = |site: Site| site.out_features(config) as f64 * site.in_features(config) as f64;
    let solving = |site: Site| {
        let (n, k) = (site.out_features(config) as f64, site.in_features(config) as f64);
        // The kept inputs of this layer, its Hessian and weights; then the factor in float64, or what solves rows.
        let inputs =
            (tokens + held.tokens()) * k * schemes.largest(site, |scheme| layer_bytes::input(scheme, false));
        let kept = inputs + 4.0 * (k * k + n * k);
        // Layers that were smoothed together wait.
        let after: f64 = Site::ALL.into_iter().skip_while(|s| *s != site).skip(1).map(weights).sum();
        let waiting = if smooth { 4.0 * after } else { 0.0 };
        let solver = (12.0 * k * k).max(4.0 * k * k + 19.0 * n * k);
        let work = if corrects { correcting(config, recipe, site, solver) } else { solver };
        kept + waiting + work
    };
    let most = Site::ALL.map(solving).into_iter().fold(searching(config, recipe), f64::max);
    let simulated = schemes.simulated().map(|method| layer_bytes::simulated(method, false));
    let multiplied = |scheme| simulated.unwrap_or_else(|| layer_bytes::multiplied(scheme));
    let packed = |site| weights(site) * schemes.largest(site, multiplied);
    let mut block: f64 = Site::ALL.map(packed).iter().sum();
    if schemes.simulated().is_some_and(SimulatedMethod::has_arithmetic) {
        // Two products' sums, and an input's codes.
        let widest = Site::ALL.map(|s| 8 * s.out_features(config) + 2 * s.in_features(config));
        block += SIMULATED_ROWS.min(longest) * widest.into_iter().fold(0, usize::max) as f64;
    }
    if recipe.propagation == Propagation::Float {
        // 16-bit layers, and all sums at once.
        let all: f64 = Site::ALL.map(weights).iter().sum();
        block =
            2.4 * all + Site::ALL.map(|s| 8.0 * (s.in_features(config) as f64).powi(2)).iter().sum::<f64>();
    }
    let blocks = states + pass + block + most;
    (RETAINED * (DEVICE_LIBRARIES + blocks.max(held_states + comparing(config, recipe, held)))) as u64
}

/// What the comparison of predictions takes beside hidden states: output heads of 16 bits of both models, one of them beside
/// what it is made of, and logits of some rows of both.
fn comparing(config: &ModelConfig, recipe: &Recipe, held: HeldText) -> f64 {
    if held.windows == 0 {
        return 0.0;
    }
    let vocab = config.vocab_size as f64;
    let logits = 8.0 * vocab * rows_at_a_time(config.vocab_size) as f64;
    rotation_bytes(config, recipe) + 8.0 * vocab * config.hidden_size as f64 + logits
}

/// What a site takes beside its kept inputs, Hessian and weights where weights are corrected, and `solver` to solve them.
fn correcting(config: &ModelConfig, recipe: &Recipe, site: Site, solver: f64) -> f64 {
    let window = recipe.calibration.window as f64;
    let tokens = recipe.calibration.windows as f64 * window;
    let (n, k) = (site.out_features(config) as f64, site.in_features(config) as f64);
    // The float model's inputs in 16 bits. A window makes those of the last site, and leaves the block.
    let (comparing, solving) = match site {
        Site::Qkv | Site::O | Site::GateUp => (2.0 * tokens * k, 2.0 * tokens * k),
        Site::Down => (2.0 * tokens * config.hidden_size as f64, 0.0),
    };
    // A float layer of 16 bits, and a window's inputs and differences, beside the sums.
    let layer = 2.0 * n * k;
    let comparing = comparing + layer + 8.0 * k * k + 6.0 * window * k;
    // Both means and the moved weights; the factor in float64 and what moves rows, or what solves them.
    let moving = 8.0 * k * k + 20.0 * MOVED_ROWS.min(n) * k;
    let solving = solving + layer + 8.0 * k * k + 5.0 * n * k + moving.max(solver);
    comparing.max(solving)
}

/// What learning a block takes: its weights as they are read, as they are learned with, and rounded, gradients by those of the widest
/// layer, what a window leaves, and what each query has for each key, twice: probabilities and gradients.
fn learning(config: &ModelConfig, recipe: &Recipe) -> f64 {
    let window = recipe.calibration.window as f64;
    let weights = Site::ALL.map(|s| s.out_features(config) as f64 * s.in_features(config) as f64);
    let widest = weights.into_iter().fold(0.0, f64::max);
    let rows = omniquant::rows_at_once(config) * window;
    4.0 * (3.0 * weights.iter().sum::<f64>() + 2.0 * widest + rows + 2.0 * window * window)
}

/// What the search for the scales of smoothing takes: a block in float32, the layer of a site in 16 bits, a candidate's codes
/// and weights, and what a window works in, with the outputs that are compared.
fn searching(config: &ModelConfig, recipe: &Recipe) -> f64 {
    if recipe.learns() {
        return learning(config, recipe);
    }
    if !recipe.transform.scales_channels() {
        return 0.0;
    }
    let (windows, tokens) = recipe.transform_amount();
    let weights = Site::ALL.map(|s| s.out_features(config) as f64 * s.in_features(config) as f64);
    let (hidden, inner) = (config.hidden_size as f64, config.intermediate_size as f64);
    let heads = head_layout(config);
    let between = 4.0 * (heads.qkv_width() + heads.q_width() + heads.kv_width()) as f64;
    let pass = tokens as f64 * (between + 10.0 * hidden + 15.0 * inner);
    // The inputs of a site with outputs behind it, where all windows are looked at.
    let kept = match recipe.transform.reads_windows() {
        true => 2.0 * (windows * tokens) as f64 * (hidden + inner.max(hidden + heads.q_width() as f64)),
        false => 0.0,
    };
    kept + 4.0 * weights.iter().sum::<f64>() + 3.6 * weights.into_iter().fold(0.0, f64::max) + pass
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Transform, shapes};

    fn bytes(config: &ModelConfig, recipe: &Recipe) -> u64 {
        super::bytes(config, recipe, &Schemes::of(config, recipe).unwrap(), HeldText::default())
    }

    fn check_device(config: &ModelConfig, recipe: &Recipe, free: u64) -> crate::Result<u64> {
        let schemes = Schemes::of(config, recipe).unwrap();
        crate::preflight::check_device(config, recipe, &schemes, HeldText::default(), free)
    }

    #[test]
    fn a_gpu_of_12_gb_has_room_for_7b() {
        let with = |windows, window| Recipe {
            calibration: crate::Calibration { windows, window, smooth_tokens: 512 },
            error_correction: 0.0,
            ..Recipe::DEFAULT
        };
        let need = bytes(&shapes::llama_7b(32), &with(128, 2048));
        assert!((9_500_000_000..12_000_000_000).contains(&need), "{need}");
        let config = shapes::llama_7b(32);
        // The layers that wait are fewer than what solving the last one takes.
        let smooth = Recipe {
            transform: crate::Transform::Smooth,
            calibration: crate::Calibration { windows: 128, window: 2048, smooth_tokens: 2048 },
            error_correction: 0.0,
            ..Recipe::DEFAULT
        };
        assert!((need..12_000_000_000).contains(&bytes(&config, &smooth)), "{}", bytes(&config, &smooth));
        // With few windows it is the search that takes most.
        let few = |transform| Recipe { transform, ..with(1, 2048) };
        let [smooth, plain] = [Transform::Smooth, Transform::None].map(|t| bytes(&config, &few(t)));
        assert!(smooth as f64 > plain as f64 + 1e8, "{smooth} {plain}");
        // The float model's hidden states take 4.3 GB, the inputs that its windows hold at the last site half of that.
        let corrected = bytes(&config, &Recipe { error_correction: 0.3, ..with(128, 2048) });
        let more = corrected - need;
        assert!((5_500_000_000..9_000_000_000).contains(&more), "{more} more for a correction");
        let correct = |windows| Recipe { error_correction: 0.3, ..with(windows, 2048) };
        let said = check_device(&config, &correct(128), 14_000_000_000).unwrap_err().to_string();
        assert!(said.contains("64 fit") && said.contains("--error-correction 0"), "{said}");
        assert!(check_device(&config, &correct(64), 14_000_000_000).is_ok());
        let error = check_device(&config, &with(128, 2048), 8_000_000_000).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("32 fit") || error.contains("64 fit"), "{error}");
        assert!(check_device(&config, &with(128, 2048), 12_000_000_000).is_ok());
        let error = check_device(&config, &with(1, 2048), 500_000_000).unwrap_err().to_string();
        assert!(error.contains("--device cpu") && !error.contains(" fit"), "{error}");
    }
}
