//! Random weights by their place in a tensor, so that threads make pieces of it in any order.
//!
//! The generator is SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014),
//! whose n-th number is a function of n. Each of its numbers makes four weights: 16 bits choose one of 65,536 quantiles
//! of the normal distribution. So the largest weight is 4.2 standard deviations.

use half::bf16;

/// Weights that a number of the generator makes.
pub(super) const PER_NUMBER: usize = 4;
/// Quantiles of the normal distribution.
const QUANTILES: usize = 1 << 16;
/// Step of the uniform quantizer of 15 levels that has the least squared error on normal weights, in their standard
/// deviations: between those of 14 and 16 levels in Max, "Quantizing for Minimum Distortion", IRE Transactions on
/// Information Theory, 1960.
pub(super) const CODE_STEP: f64 = 0.353;
/// The largest code.
pub(super) const MAX_CODE: i8 = 7;

/// What SplitMix64 adds from number to number.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's output function.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The random numbers of a tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream(u64);

impl Stream {
    /// Those of the tensor `name`, whatever other tensors there are.
    pub fn new(seed: u64, name: &str) -> Self {
        Self(
            name.bytes().fold(mix(seed.wrapping_add(GAMMA)), |key, byte| {
                mix(key ^ u64::from(byte)).wrapping_add(GAMMA)
            }),
        )
    }

    fn number(self, index: u64) -> u64 {
        mix(self.0.wrapping_add(index.wrapping_mul(GAMMA)))
    }
}

/// Quantiles of the normal distribution, in the middle of equal shares of probability, ascending.
#[derive(Debug)]
pub(super) struct Normal(Vec<f64>);

impl Normal {
    /// Computes them: the quantile `x` of a probability `p` grows by `dx/dp = sqrt(2 pi) exp(x^2 / 2)`, from 0 in the
    /// middle.
    pub fn new() -> Self {
        // Of Runge and Kutta's method, for a share of probability: the last shares are the steepest.
        const STEPS: usize = 16;
        let slope = |x: f64| (2.0 * std::f64::consts::PI).sqrt() * (x * x / 2.0).exp();
        let step = 1.0 / (QUANTILES * STEPS) as f64;
        let mut upper = Vec::with_capacity(QUANTILES / 2);
        let mut x = 0.0;
        for i in 0..QUANTILES / 2 {
            // From the border in the middle to the first share's own middle it is half a share.
            for _ in 0..if i == 0 { STEPS / 2 } else { STEPS } {
                let a = slope(x);
                let b = slope(x + step / 2.0 * a);
                let c = slope(x + step / 2.0 * b);
                let d = slope(x + step * c);
                x += step / 6.0 * (a + 2.0 * b + 2.0 * c + d);
            }
            upper.push(x);
        }
        Self(upper.iter().rev().map(|x| -x).chain(upper.iter().copied()).collect())
    }

    /// Bfloat16 weights of a standard deviation, as they lie in a file.
    pub fn weights(&self, deviation: f64) -> Table<u16> {
        Table(self.0.iter().map(|x| bf16::from_f64(x * deviation).to_bits().to_le()).collect())
    }

    /// Two codes a byte of normal weights in steps of [`CODE_STEP`], each made a nibble by `encode`.
    pub fn codes(&self, encode: fn(i8) -> u8) -> Table<u8> {
        const SHARES: usize = 256;
        let limit = f64::from(MAX_CODE);
        let nibbles: Vec<u8> = self
            .0
            .chunks_exact(QUANTILES / SHARES)
            .map(|share| {
                let middle = share[share.len() / 2];
                encode((middle / CODE_STEP).round().clamp(-limit, limit) as i8) & 15
            })
            .collect();
        Table((0..QUANTILES).map(|i| nibbles[i % SHARES] | nibbles[i / SHARES] << 4).collect())
    }
}

/// What 16 random bits stand for.
pub(super) struct Table<T>(Vec<T>);

impl<T: Copy> Table<T> {
    /// The elements of a stream from the one at `first` on, which is a multiple of [`PER_NUMBER`].
    pub fn fill(&self, stream: Stream, first: usize, out: &mut [T]) {
        debug_assert!(first.is_multiple_of(PER_NUMBER));
        // An array of all, so that no index needs a check.
        let Some(table) = self.0.first_chunk::<QUANTILES>() else { return };
        for (i, four) in out.chunks_mut(PER_NUMBER).enumerate() {
            let mut bits = stream.number((first / PER_NUMBER + i) as u64);
            for value in four {
                *value = table[usize::from(bits as u16)];
                bits >>= 16;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_normal_distribution() {
        let Normal(quantiles) = Normal::new();
        assert_eq!(quantiles.len(), QUANTILES);
        // What tables have for some probabilities; shares have their borders in the middle between quantiles.
        let border = |i: usize| (quantiles[i - 1] + quantiles[i]) / 2.0;
        let between = |p: f64| {
            let place = p * QUANTILES as f64;
            let (i, part) = (place as usize, place.fract());
            border(i) * (1.0 - part) + border(i + 1) * part
        };
        assert!((between(0.5)).abs() < 1e-12);
        assert!((between(0.975) - 1.959_964).abs() < 1e-5, "{}", between(0.975));
        assert!((between(0.841_344_746) - 1.0).abs() < 1e-5);
        assert!((4.17..4.35).contains(&quantiles[QUANTILES - 1]), "{}", quantiles[QUANTILES - 1]);
        let variance = quantiles.iter().map(|x| x * x).sum::<f64>() / QUANTILES as f64;
        assert!((variance - 1.0).abs() < 1e-3, "{variance}");
    }

    #[test]
    fn pieces_make_the_whole() {
        let table = Normal::new().weights(0.5);
        let stream = Stream::new(3, "a");
        let mut whole = vec![0; 1003];
        table.fill(stream, 0, &mut whole);
        let mut pieces = vec![0; 1003];
        let (first, second) = pieces.split_at_mut(400);
        table.fill(stream, 400, second);
        table.fill(stream, 0, first);
        assert_eq!(whole, pieces);
        for other in [Stream::new(4, "a"), Stream::new(3, "b"), Stream::new(3, "aa")] {
            let mut values = vec![0; 1003];
            table.fill(other, 0, &mut values);
            let same = values.iter().zip(&whole).filter(|(a, b)| a == b).count();
            assert!(same < 20, "{same} of 1003 are alike");
        }
    }

    #[test]
    fn weights_have_their_deviation_and_no_mean() {
        let table = Normal::new().weights(0.25);
        let mut bits = vec![0u16; 1 << 18];
        table.fill(Stream::new(0, "w"), 0, &mut bits);
        let values: Vec<f64> = bits.iter().map(|b| bf16::from_bits(u16::from_le(*b)).to_f64()).collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let deviation = (values.iter().map(|x| x * x).sum::<f64>() / n).sqrt();
        assert!(mean.abs() < 4.0 * 0.25 / n.sqrt(), "{mean}");
        assert!((deviation / 0.25 - 1.0).abs() < 0.01, "{deviation}");
        // Neighbours know nothing of each other.
        let together: f64 = values.windows(2).map(|w| w[0] * w[1]).sum::<f64>() / n / (0.25 * 0.25);
        assert!(together.abs() < 4.0 / n.sqrt(), "{together}");
    }

    #[test]
    fn codes_are_those_of_normal_weights() {
        let table = Normal::new().codes(|code| (code + 8) as u8);
        let mut bytes = vec![0u8; 1 << 18];
        table.fill(Stream::new(0, "w"), 0, &mut bytes);
        let mut counts = [0usize; 16];
        bytes.iter().for_each(|b| {
            counts[usize::from(b & 15)] += 1;
            counts[usize::from(b >> 4)] += 1;
        });
        assert_eq!(counts[0], 0, "-8 is no code of a symmetric weight");
        let n = 2.0 * bytes.len() as f64;
        // The share of zeros: within half a step of the middle.
        let zeros = counts[8] as f64 / n;
        assert!((zeros - 0.140).abs() < 0.01, "{zeros}");
        let square: f64 =
            counts.iter().enumerate().map(|(i, c)| *c as f64 * (i as f64 - 8.0).powi(2)).sum::<f64>() / n;
        // Rounding to the best steps takes about 1% of the variance away.
        assert!((square.sqrt() * CODE_STEP - 1.0).abs() < 0.03, "{}", square.sqrt() * CODE_STEP);
    }
}
