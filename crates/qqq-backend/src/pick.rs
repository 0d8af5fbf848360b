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

/// What was drawn of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    /// `sum(exp((y - max(y)) / temperature))`.
    pub total: f64,
    /// `None` where an element is not finite.
    pub column: Option<u32>,
}
