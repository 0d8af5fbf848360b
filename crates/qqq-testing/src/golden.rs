//! The golden vectors: weights and products of the QQQ reference (`golden/README.md`).

use std::path::PathBuf;

use half::f16;
use qqq_formats::{CodeBits, QuantizedWeight, Scales};
use safetensors::SafeTensors;

/// The folder with the files.
pub fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "golden"].iter().collect()
}

/// A product of the reference. The weight is read here without the crate that is to be tested with it.
#[derive(Clone, Debug)]
pub struct Product {
    /// The file, without its extension.
    pub name: &'static str,
    /// Codes and scales in natural order; per channel, the scales are those of the codes.
    pub weight: QuantizedWeight,
    /// What an int8 weight is multiplied by before the reference's product: 16 per channel, 1 in groups.
    pub factor: i32,
    /// The reference's int8 weights, N x K.
    pub int8_weights: Vec<i8>,
    /// Int8 activations, M x K.
    pub x: Vec<i8>,
    /// Their scales, one a token.
    pub token_scales: Vec<f32>,
    /// Sums of the products of `x` and `int8_weights`, M x N.
    pub accumulators: Vec<i32>,
    /// Accumulators times both scales, M x N.
    pub y: Vec<f32>,
    /// `y` in float16, as bits.
    pub y_f16: Vec<u16>,
}

/// All products: one with scales per channel, one with scales of groups of 128.
///
/// # Panics
/// When a file is missing or damaged.
pub fn products() -> [Product; 2] {
    [
        product("gemm_channel_m5_k128_n128", 128, 128, None),
        product("gemm_group128_m5_k256_n128", 128, 256, Some(128)),
    ]
}

fn product(name: &'static str, n: usize, k: usize, group_size: Option<usize>) -> Product {
    let path = folder().join(name).with_extension("safetensors");
    let data = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&data).expect(name);
    let codes = transposed(&values(&file, "codes", |[b]| b as i8), k, n);
    let s_channel = natural(&values(&file, "s_channel", f32::from_le_bytes), 32, |i, m| {
        2 * i + [0, 1, 8, 9, 16, 17, 24, 25][m]
    });
    let scales = match group_size {
        None => Scales::PerChannel(s_channel.iter().map(|s| s * 16.0).collect()),
        Some(group_size) => {
            let group = natural(&values(&file, "s_group", f16::from_le_bytes), 64, |i, m| i + 8 * m);
            let group = transposed(&group, k / group_size, n);
            Scales::PerGroup { group_size, channel: s_channel, group }
        }
    };
    Product {
        name,
        weight: QuantizedWeight { bits: CodeBits::Four, out_features: n, in_features: k, codes, scales },
        factor: if group_size.is_none() { 16 } else { 1 },
        int8_weights: transposed(&values(&file, "w8", |[b]| b as i8), k, n),
        x: values(&file, "a", |[b]| b as i8),
        token_scales: values(&file, "s1", f32::from_le_bytes),
        accumulators: values(&file, "acc", i32::from_le_bytes),
        y: values(&file, "out_f32", f32::from_le_bytes),
        y_f16: values(&file, "out", u16::from_le_bytes),
    }
}

/// Natural order of packed scales: `packed[8 * i + m] = natural[from(i, m)]` in blocks of `block`.
fn natural<T: Copy>(packed: &[T], block: usize, from: impl Fn(usize, usize) -> usize) -> Vec<T> {
    let mut out = packed.to_vec();
    for (packed, out) in packed.chunks_exact(block).zip(out.chunks_exact_mut(block)) {
        for (j, &value) in packed.iter().enumerate() {
            out[from(j / 8, j % 8)] = value;
        }
    }
    out
}

fn values<T, const B: usize>(file: &SafeTensors, name: &str, convert: impl Fn([u8; B]) -> T) -> Vec<T> {
    file.tensor(name).expect(name).data().as_chunks().0.iter().map(|&bytes| convert(bytes)).collect()
}

/// `rows x cols` to `cols x rows`.
fn transposed<T: Copy>(data: &[T], rows: usize, cols: usize) -> Vec<T> {
    (0..rows * cols).map(|i| data[i % rows * cols + i / rows]).collect()
}
