//! Text that calibration does not see, for the comparison with the float model.
//!
//! Calibration windows lie where the seed puts them; held-out ones come from the middle of the largest gaps between them, so
//! they follow from the same seed, and what is held out changes nothing for calibration.

use std::ops::Range;

use super::{TOKEN_BYTES, boundary, line_start, pieces};
use crate::Result;

/// Fewer tokens say nothing.
pub(super) const LEAST: usize = 16;

/// Up to `count` windows of up to `len` tokens of a text, beside the windows of `len` tokens that start at these bytes.
pub(super) fn of_text(
    text: &str,
    starts: &[usize],
    len: usize,
    count: usize,
    encode: &dyn Fn(&str) -> Result<Vec<u32>>,
) -> Result<Vec<Vec<u32>>> {
    let mut windows = Vec::new();
    if count == 0 {
        return Ok(windows);
    }
    let mut taken = Vec::with_capacity(starts.len());
    for (i, &start) in starts.iter().enumerate() {
        let next = starts.get(i + 1).copied().unwrap_or(text.len());
        taken.push(start..start + end_of(&text[start..next], len, encode)?);
    }
    let mut gaps = between(&taken, text.len());
    while let Some(gap) = (windows.len() < count).then(|| largest(&mut gaps)).flatten() {
        let room = &text[gap.clone()];
        let before = room.len().saturating_sub(len * TOKEN_BYTES) / 2;
        let start = line_start(room, boundary(room, before));
        let rest = &room[start..];
        let mut tokens = Vec::new();
        for piece in pieces(rest) {
            tokens.extend(encode(piece)?);
            if tokens.len() >= len {
                break;
            }
        }
        tokens.truncate(len);
        if tokens.len() < LEAST {
            continue;
        }
        let end = gap.start + start + end_of(rest, len, encode)?;
        gaps.extend([gap.start..gap.start + start, end..gap.end]);
        windows.push(tokens);
    }
    Ok(windows)
}

/// As [`of_text`], of a text that is tokens already.
pub(super) fn of_tokens(tokens: &[u32], starts: &[usize], len: usize, count: usize) -> Vec<Vec<u32>> {
    let taken: Vec<_> = starts.iter().map(|&start| start..start + len).collect();
    let mut gaps = between(&taken, tokens.len());
    let mut windows = Vec::new();
    while let Some(gap) = (windows.len() < count).then(|| largest(&mut gaps)).flatten() {
        let start = gap.start + gap.len().saturating_sub(len) / 2;
        let end = (start + len).min(gap.end);
        if end - start >= LEAST {
            gaps.extend([gap.start..start, end..gap.end]);
            windows.push(tokens[start..end].to_vec());
        }
    }
    windows
}

/// What lies between ranges that follow one another, and at both ends.
fn between(taken: &[Range<usize>], end: usize) -> Vec<Range<usize>> {
    let starts = taken.iter().map(|range| range.start).chain([end]);
    let ends = [0].into_iter().chain(taken.iter().map(|range| range.end));
    ends.zip(starts).filter(|(start, end)| start < end).map(|(start, end)| start..end).collect()
}

/// Takes the largest gap, the first of several.
fn largest(gaps: &mut Vec<Range<usize>>) -> Option<Range<usize>> {
    let most = gaps.iter().map(Range::len).max()?;
    gaps.iter().position(|gap| gap.len() == most).map(|at| gaps.swap_remove(at))
}

/// A place in `text` behind its first `len` tokens, not far; its end where it has no more.
fn end_of(text: &str, len: usize, encode: &dyn Fn(&str) -> Result<Vec<u32>>) -> Result<usize> {
    let mut end = boundary(text, (len * 4).min(text.len()));
    loop {
        if end == text.len() || encode(&text[..end])?.len() > len {
            return Ok(end);
        }
        end = boundary(text, (end + end / 8 + TOKEN_BYTES).min(text.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token for every word.
    fn words(text: &str) -> Result<Vec<u32>> {
        Ok(text.split_whitespace().map(|word| word.parse().unwrap_or(0)).collect())
    }

    fn numbers(n: u32) -> String {
        (0..n).map(|i| format!("{i:07}{}", if i % 50 == 49 { "\n\n" } else { " " })).collect()
    }

    /// That windows are whole and have nothing of each other.
    fn assert_apart(calibration: &[Vec<u32>], held_out: &[Vec<u32>]) {
        let mut all: Vec<u32> = calibration.iter().chain(held_out).flatten().copied().collect();
        let tokens = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), tokens, "a token is in two windows");
        assert!(held_out.iter().all(|w| w.windows(2).all(|pair| pair[1] == pair[0] + 1)), "no gaps");
    }

    #[test]
    fn held_out_text_is_none_of_calibration() {
        let text = numbers(9000);
        // Windows of 100 words at places of their own.
        let starts: Vec<usize> =
            [40, 1500, 1700, 8000].map(|word| text.find(&format!("{word:07}")).unwrap()).to_vec();
        let calibration: Vec<Vec<u32>> = [40, 1500, 1700, 8000].map(|w| (w..w + 100).collect()).to_vec();
        let held_out = of_text(&text, &starts, 100, 3, &words).unwrap();
        assert_eq!(held_out.iter().map(Vec::len).collect::<Vec<_>>(), [100; 3]);
        assert_apart(&calibration, &held_out);
        assert_eq!(of_text(&text, &starts, 100, 0, &words).unwrap(), Vec::<Vec<u32>>::new());
        // One after the other where there is no calibration.
        assert_apart(&[], &of_text(&text, &[], 1000, 5, &words).unwrap());

        let tokens: Vec<u32> = (0..9000).collect();
        let held_out = of_tokens(&tokens, &[40, 1500, 1700, 8000], 100, 3);
        assert_eq!(held_out.iter().map(Vec::len).collect::<Vec<_>>(), [100; 3]);
        assert_apart(&calibration, &held_out);
    }

    #[test]
    fn what_a_short_text_has_left_is_held_out() {
        let tokens: Vec<u32> = (0..350).collect();
        // 20 tokens before, 60 and 50 between, 70 after.
        let held_out = of_tokens(&tokens, &[20, 130, 230], 50, 4);
        assert_apart(&[(20..70).collect(), (130..180).collect(), (230..280).collect()], &held_out);
        assert_eq!(held_out.iter().map(Vec::len).collect::<Vec<_>>(), [50, 50, 50, 20]);
        // Nothing is left, or too little to say something.
        assert!(of_tokens(&tokens, &[0, 175], 175, 2).is_empty());
        assert!(of_tokens(&tokens[..LEAST - 1], &[], 100, 2).is_empty());
        let text = numbers(130);
        assert!(of_text(&text, &[0], 120, 2, &words).unwrap().is_empty());
    }
}
