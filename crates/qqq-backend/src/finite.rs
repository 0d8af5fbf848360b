//! Values that are NaN or infinite.

/// Index of the first value that is NaN or infinite. Looks at whole chunks first, which takes no branch a value.
pub fn first_not_finite(values: &[f32]) -> Option<usize> {
    const CHUNK: usize = 1024;
    let bad = values.chunks(CHUNK).position(|c| c.iter().fold(false, |bad, v| bad | !v.is_finite()))?;
    values[bad * CHUNK..].iter().position(|v| !v.is_finite()).map(|i| bad * CHUNK + i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_several_is_found() {
        for len in [1, 1023, 1024, 1025, 5000] {
            let mut values = vec![f32::MAX; len];
            assert_eq!(first_not_finite(&values), None);
            for (at, bad) in [(len - 1, f32::NAN), (len / 2, f32::NEG_INFINITY), (0, f32::INFINITY)] {
                values[at] = bad;
                assert_eq!(first_not_finite(&values), Some(at), "of {len}");
            }
        }
        assert_eq!(first_not_finite(&[]), None);
    }
}
