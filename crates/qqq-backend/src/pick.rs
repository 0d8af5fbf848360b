//! What is asked of rows of logits, and what is found in them.

/// What is asked of each row `y` of logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pick {
    /// How many of the largest elements.
    pub largest: usize,
    /// Above 0: a column is drawn, with probabilities `softmax(y / temperature)`. `None`: none is.
    pub temperature: Option<f32>,
}

impl Pick {
    /// The `count` largest elements.
    pub fn largest(count: usize) -> Self {
        Self { largest: count, temperature: None }
    }

    /// A column at random.
    pub fn draw(temperature: f32) -> Self {
        Self { largest: 0, temperature: Some(temperature) }
    }
}

/// What is found in a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Picked {
    /// The largest elements with their columns, in the order of [`descending`](crate::descending). Of a row with elements that
    /// are not finite, the first of these alone; nothing where none was asked for.
    pub largest: Vec<(f32, u32)>,
    /// What was drawn, if that was asked for.
    pub drawn: Option<Drawn>,
}

/// What a pair of rows of logits says about two models that predict the same token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairScore {
    /// Negative log-likelihood of the target under the baseline, nats.
    pub baseline_nll: f64,
    /// The same under the model.
    pub model_nll: f64,
    /// KL(baseline || model), nats.
    pub kl: f64,
    /// Whether the likeliest tokens agree (the first one counts where several are equal).
    pub agree: bool,
}

impl PairScore {
    /// Whether all of it are numbers.
    pub fn is_finite(&self) -> bool {
        self.baseline_nll.is_finite() && self.model_nll.is_finite() && self.kl.is_finite()
    }
}

/// What was drawn of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    /// `sum(exp((y - max(y)) / temperature))`.
    pub total: f64,
    /// `None` where an element is not finite.
    pub column: Option<u32>,
}
