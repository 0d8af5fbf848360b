//! What it means that the tensors of a source are stored in few bits already.

use std::collections::BTreeMap;

use qqq_formats::{Checkpoint, DType};

/// Types of so many bits and more lose little beside the 4 bits that are made of them.
const FINE_BITS: u32 = 8;

/// A source whose weights are quantized already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AlreadyQuantized {
    /// To less than [`FINE_BITS`]: a warning.
    Coarse(String),
    /// To [`FINE_BITS`]: a note.
    Fine(String),
}

/// What to say of a source, if some of its weights are stored in a block-quantized type.
pub(crate) fn already_quantized(checkpoint: &Checkpoint) -> Option<AlreadyQuantized> {
    let mut weights: BTreeMap<DType, usize> = BTreeMap::new();
    for name in checkpoint.tensors.names() {
        // Norms and biases are few, and in float in every file.
        if let Some(info) = checkpoint.tensors.info(&name).filter(|info| info.shape.len() > 1) {
            *weights.entry(info.dtype).or_default() += info.shape.iter().product::<usize>();
        }
    }
    let name = checkpoint.path.file_name().unwrap_or(checkpoint.path.as_os_str()).to_string_lossy();
    message(&name, weights.into_iter().map(|(dtype, count)| (dtype, count as f64)).collect())
}

/// For weights of these types and numbers.
fn message(name: &str, mut types: Vec<(DType, f64)>) -> Option<AlreadyQuantized> {
    let total: f64 = types.iter().map(|(_, count)| count).sum();
    let bits: Vec<u32> = types.iter().filter_map(|(dtype, _)| quantized_bits(*dtype)).collect();
    let (least, most) = (*bits.iter().min()?, *bits.iter().max()?);
    types.sort_by(|a, b| b.1.total_cmp(&a.1));
    let shares: Vec<String> =
        types.iter().map(|(dtype, count)| format!("{dtype} {}", percent(count / total))).collect();
    let bits = if least == most { format!("{least}") } else { format!("{least} to {most}") };
    let types = shares.join(", ");
    Some(if least < FINE_BITS {
        AlreadyQuantized::Coarse(format!(
            "{name} is quantized already, to {bits} bits ({types} of the weights): the result keeps what that has cost and \
             adds its own loss; quantize the float original instead (safetensors, or a GGUF file of type F16 or BF16)"
        ))
    } else {
        AlreadyQuantized::Fine(format!(
            "{name} is stored in {bits} bits ({types} of the weights), which costs little; the float original (safetensors, \
             or a GGUF file of type F16 or BF16) is still the better source"
        ))
    })
}

/// Bits of a block-quantized type, which its name has as its first digit (`Q4_1`, `IQ2_XS`); of others `None`.
fn quantized_bits(dtype: DType) -> Option<u32> {
    let DType::Gguf(name) = dtype else { return None };
    name.chars().find_map(|c| c.to_digit(10))
}

fn percent(share: f64) -> String {
    if share < 0.01 { "below 1%".into() } else { format!("{:.0}%", share * 100.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q4: DType = DType::Gguf("Q4_1");
    const Q6: DType = DType::Gguf("Q6_K");
    const Q8: DType = DType::Gguf("Q8_0");

    #[test]
    fn few_bits_are_a_warning_with_types_and_shares() {
        let Some(AlreadyQuantized::Coarse(text)) = message("a.gguf", vec![(Q8, 21.0), (Q4, 79.0)]) else {
            panic!()
        };
        assert!(
            text.contains("a.gguf is quantized already, to 4 to 8 bits (Q4_1 79%, Q8_0 21% of"),
            "{text}"
        );
        assert!(text.contains("F16 or BF16"), "{text}");
        let Some(AlreadyQuantized::Coarse(text)) = message("b", vec![(Q6, 999.0), (DType::F32, 1.0)]) else {
            panic!()
        };
        assert!(text.contains("to 6 bits (Q6_K 100%, F32 below 1% of"), "{text}");
        for name in ["IQ2_XS", "TQ1_0", "MXFP4", "NVFP4", "Q5_0"] {
            assert!(matches!(
                message("c", vec![(DType::Gguf(name), 1.0)]),
                Some(AlreadyQuantized::Coarse(_))
            ));
        }
    }

    #[test]
    fn eight_bits_are_a_note_and_floats_nothing() {
        let Some(AlreadyQuantized::Fine(text)) = message("a.gguf", vec![(Q8, 9.0), (DType::F16, 1.0)]) else {
            panic!()
        };
        assert!(text.contains("in 8 bits (Q8_0 90%, F16 10% of"), "{text}");
        for floats in [vec![], vec![(DType::F16, 1.0)], vec![(DType::BF16, 1.0), (DType::F32, 2.0)]] {
            assert_eq!(message("a", floats), None);
        }
    }
}
