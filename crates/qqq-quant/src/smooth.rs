//! QQQ's adaptive smoothing.

/// `s_j = max(1, max_j / sigma, min_j / -sigma)`.
pub fn scales(_max: &[f32], _min: &[f32], _sigma: f32) -> Vec<f32> {
    unimplemented!()
}
