//! Models that are split over several files, as `llama-gguf-split` and llama.cpp's converter name them:
//! `NAME-00001-of-00003.gguf`.

/// Digits of a part's number and of the number of parts.
const DIGITS: usize = 5;

/// The names of all parts of a split model, in order, from the name (or path) of any one of them; `None` if the
/// name does not follow the pattern `NAME-00001-of-00003.gguf`, that is, for a model in one file. A folder before
/// the name is kept.
pub fn split_parts(name: &str) -> Option<Vec<String>> {
    let (stem, number, count) = pattern(name)?;
    (1..=count).contains(&number).then(|| (1..=count).map(|i| part_name(stem, i, count)).collect())
}

/// Name of part `number` (from 1) of `count`.
fn part_name(stem: &str, number: usize, count: usize) -> String {
    format!("{stem}-{number:0DIGITS$}-of-{count:0DIGITS$}.gguf")
}

/// What comes before the numbers, and the numbers.
fn pattern(name: &str) -> Option<(&str, usize, usize)> {
    let rest = name.strip_suffix(".gguf")?;
    let (rest, count) = rest.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |s: &str| {
        (s.len() == DIGITS && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse().ok()).flatten()
    };
    Some((stem, digits(number)?, digits(count)?))
}

#[cfg(test)]
mod tests {
    use super::split_parts;

    #[test]
    fn parts_belong_together_by_name() {
        let all = ["q8/big-00001-of-00003.gguf", "q8/big-00002-of-00003.gguf", "q8/big-00003-of-00003.gguf"];
        for name in all {
            assert_eq!(split_parts(name).unwrap(), all);
        }
        assert_eq!(split_parts("a-of-b-00001-of-00001.gguf").unwrap(), ["a-of-b-00001-of-00001.gguf"]);
        for name in [
            "model.gguf",
            "model-00000-of-00003.gguf",
            "model-00004-of-00003.gguf",
            "model-1-of-3.gguf",
            "model-00001-of-0003.gguf",
            "model-0000+1-of-00003.gguf",
            "model-00001-of-00003.safetensors",
            "model-00001-of-00003",
            "00001-of-00003.gguf",
            "",
        ] {
            assert_eq!(split_parts(name), None, "{name}");
        }
    }
}
