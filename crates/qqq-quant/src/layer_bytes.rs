//! What a layer takes by what becomes of it: its inputs as they are kept, its weights as they are multiplied and as they are
//! stored.

use qqq_backend::{InputKind, solve::Scheme};
use qqq_formats::{Activations, CodeBits, SimulatedMethod};

/// Bytes of a value of its inputs, in the host's memory or on a device.
pub(crate) fn input(scheme: Option<Scheme>, on_host: bool) -> f64 {
    match scheme.map_or(InputKind::Float, Scheme::input_kind) {
        InputKind::Int8 => 1.0,
        InputKind::Float if on_host => 4.0,
        InputKind::Float => 2.0,
    }
}

/// Bytes of a weight as it is multiplied, with its share of scales.
pub(crate) fn multiplied(scheme: Option<Scheme>) -> f64 {
    match scheme {
        Some(Scheme { bits: CodeBits::Four, activations: Activations::Int8, .. }) => 0.6,
        Some(Scheme { bits: CodeBits::Eight, activations: Activations::Int8, .. }) => 1.1,
        // In 16 bits, but for devices that have kernels for 4.
        Some(Scheme { activations: Activations::Half, .. }) | None => 2.0,
    }
}

/// Bytes of a weight of a method that is simulated, as the host or a device multiplies it.
pub(crate) fn simulated(method: &SimulatedMethod, on_host: bool) -> f64 {
    match (method.has_arithmetic(), on_host) {
        // Codes beside the 16-bit weights; a device holds codes in 16 bits.
        (true, true) => 3.1,
        (true, false) => 4.0,
        (false, _) => 2.0,
    }
}

/// Bytes of a layer of `n x k` as it is stored.
pub(crate) fn stored(scheme: Option<Scheme>, n: usize, k: usize) -> usize {
    match scheme {
        None => 2 * n * k,
        Some(Scheme { bits, group_size, .. }) => {
            n * k * bits.get() / 8 + 4 * n + group_size.map_or(0, |g| 2 * n * (k / g))
        }
    }
}
