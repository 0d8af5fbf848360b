//! Python's `random.Random`, as far as lm-evaluation-harness draws with it: the same seed gives the same draws.

use std::collections::HashSet;

use rand_mt::Mt;

/// A generator with its state.
pub(super) struct PythonRandom(Mt);

impl PythonRandom {
    /// `random.Random(seed)`.
    pub fn new(seed: u32) -> Self {
        Self(Mt::new_with_key([seed]))
    }

    /// `random()`: a number in [0, 1) with 53 bits.
    pub fn unit(&mut self) -> f64 {
        let high = f64::from(self.0.next_u32() >> 5);
        let low = f64::from(self.0.next_u32() >> 6);
        (high * f64::from(1 << 26) + low) / (1u64 << 53) as f64
    }

    /// A whole number below `n`, each as likely: bits are drawn until they make one.
    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        debug_assert!((1..=32).contains(&bits));
        loop {
            let drawn = (self.0.next_u32() >> (32 - bits)) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `sample(range(n), k)`: `k` different numbers below `n`, in the order in which they were drawn.
    ///
    /// # Panics
    /// `k` is more than `n`.
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        assert!(k <= n, "{k} of {n}");
        // From here on a list of what is left costs Python more memory than a set of what was drawn, and it draws otherwise.
        let mut set_size = 21;
        if k > 5 {
            let mut power = 1;
            while power < 3 * k {
                power *= 4;
            }
            set_size += power;
        }
        if n <= set_size {
            let mut left: Vec<usize> = (0..n).collect();
            return (0..k)
                .map(|i| {
                    let at = self.below(n - i);
                    let drawn = left[at];
                    left[at] = left[n - i - 1];
                    drawn
                })
                .collect();
        }
        let mut known = HashSet::new();
        let mut fresh = || loop {
            let drawn = self.below(n);
            if known.insert(drawn) {
                return drawn;
            }
        };
        (0..k).map(|_| fresh()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_those_of_python() {
        let mut random = PythonRandom::new(1234);
        assert_eq!(random.sample(5, 5), [3, 0, 4, 2, 1]);
        assert_eq!(random.sample(20, 3), [2, 3, 11]);
        assert_eq!(random.sample(22, 5), [7, 0, 11, 20, 19]);
        assert_eq!(random.sample(1000, 6), [495, 630, 474, 152, 93, 187]);
        assert_eq!(random.sample(86, 7), [14, 1, 64, 62, 31, 8, 85]);
        assert_eq!(random.sample(40000, 5), [35460, 30533, 4493, 39417, 5828]);
        let mut random = PythonRandom::new(0);
        assert_eq!(random.unit(), 0.8444218515250481);
        assert_eq!(random.unit(), 0.7579544029403025);
        assert_eq!(random.unit(), 0.420571580830845);
    }
}
