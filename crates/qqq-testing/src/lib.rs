//! What the tests of several crates share: where the test model lies, the golden vectors, numbers that are the same on
//! every machine, and a harness that reports a test as ignored where the machine lacks what it needs.

pub mod golden;
mod need;
mod rounded;
mod suite;
mod tiny_model;

pub use need::{Missing, cc, cxx, gemma3, in_ci, smollm2};
pub use rounded::{rounded, scheme_named, write_rounded};
pub use suite::Suite;
pub use tiny_model::{TinyModel, word_tokenizer};

/// Pseudo-random values in (-1, 1), the same for a seed (xorshift64).
pub fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Integers, the same for a seed (splitmix64).
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An integer in `low..=high`.
    pub fn int(&mut self, low: i32, high: i32) -> i32 {
        low + (self.bits() % (high - low + 1) as u64) as i32
    }
}
