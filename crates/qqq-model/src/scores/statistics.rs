//! Means with standard errors.

/// A mean with its standard error.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Estimate {
    /// Mean over tokens.
    pub mean: f64,
    /// Standard error from the spread between windows (tokens of one window are not independent); `None` if there is
    /// only one window.
    pub standard_error: Option<f64>,
}

impl Estimate {
    /// exp of the estimated value; its error follows to first order.
    pub fn exp(self) -> Self {
        let mean = self.mean.exp();
        Self { mean, standard_error: self.standard_error.map(|e| e * mean) }
    }
}

/// Sums of one window.
#[derive(Clone, Copy, Debug, Default)]
pub struct WindowSum {
    /// Of the values.
    pub sum: f64,
    /// How many these are.
    pub tokens: usize,
}

impl WindowSum {
    /// Adds a token's value to window `index`; windows come in order.
    pub fn add(windows: &mut Vec<Self>, index: usize, value: f64) {
        if windows.len() <= index {
            windows.resize(index + 1, Self::default());
        }
        windows[index].sum += value;
        windows[index].tokens += 1;
    }
}

/// Mean over all tokens. The standard error is that of a ratio estimate, since windows may score different numbers of
/// tokens: `sqrt(w / (w - 1) * sum((sum_i - mean * tokens_i)^2)) / tokens` for `w` windows.
pub fn estimate(windows: &[WindowSum]) -> Estimate {
    let tokens = windows.iter().map(|w| w.tokens).sum::<usize>() as f64;
    let mean = windows.iter().map(|w| w.sum).sum::<f64>() / tokens;
    let standard_error = (windows.len() > 1).then(|| {
        let count = windows.len() as f64;
        let squares: f64 = windows.iter().map(|w| (w.sum - mean * w.tokens as f64).powi(2)).sum();
        (squares * count / (count - 1.0)).sqrt() / tokens
    });
    Estimate { mean, standard_error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_windows_give_the_standard_error_of_the_mean() {
        let windows = [2.0, 4.0, 9.0].map(|m| WindowSum { sum: m * 10.0, tokens: 10 });
        let e = estimate(&windows);
        assert!((e.mean - 5.0).abs() < 1e-12);
        // Variance of 2, 4, 9 is 13; 13 / 3 under the root.
        assert!((e.standard_error.unwrap() - (13.0f64 / 3.0).sqrt()).abs() < 1e-12);
        let x = e.exp();
        assert!((x.standard_error.unwrap() - 5.0f64.exp() * (13.0f64 / 3.0).sqrt()).abs() < 1e-9);
    }

    #[test]
    fn windows_weigh_by_their_tokens() {
        let e = estimate(&[WindowSum { sum: 3.0, tokens: 3 }, WindowSum { sum: 2.0, tokens: 1 }]);
        assert!((e.mean - 1.25).abs() < 1e-12);
        // Residuals -0.75 and 0.75: sqrt(2 * 1.125) / 4.
        assert!((e.standard_error.unwrap() - 2.25f64.sqrt() / 4.0).abs() < 1e-12);
        assert_eq!(estimate(&[WindowSum { sum: 3.0, tokens: 3 }]).standard_error, None);
    }
}
