//! GGUF files: values against llama.cpp's Python package, and files that lie.

mod builder;
mod config;
mod damaged;
mod split;

use std::path::{Path, PathBuf};

use qqq_formats::gguf::GgufFile;
use qqq_formats::{DType, TensorSource, WeightData};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// Every type's values are those of `gguf.quants.dequantize` bit for bit
/// (scripts/make_gguf_vectors.py).
#[test]
fn every_type_dequantizes_as_llama_cpp_does() {
    let file = GgufFile::open(&data("dequant.gguf")).unwrap();
    let types = [
        "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
        "Q8_K",
    ];
    for name in types {
        let info = file.info(name).unwrap();
        assert_eq!(file.tensor_type(name).unwrap().name(), name);
        let expected_name = format!("{name}.expected");
        let expected_info = file.info(&expected_name).unwrap();
        assert_eq!(info.shape, expected_info.shape, "{name}");
        let got = file.f32(name, &info.shape).unwrap();
        let expected = file.f32(&expected_name, &info.shape).unwrap();
        assert!(got.len() > 40 && got.iter().any(|x| *x != 0.0));
        for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
            assert_eq!(g.to_bits(), e.to_bits(), "{name}[{i}]: {g} {e}");
        }
    }
    assert_eq!(file.names().len(), 2 * types.len());
    assert!(matches!(file.float("F16", &[2, 24]).unwrap(), WeightData::F16(_)));
    assert!(matches!(file.float("BF16", &[2, 24]).unwrap(), WeightData::BF16(_)));
    assert_eq!(file.info("Q6_K").unwrap().dtype, DType::Gguf("Q6_K"));
}

#[test]
fn metadata_has_its_types() {
    let file = GgufFile::open(&data("dequant.gguf")).unwrap();
    let m = file.metadata();
    assert_eq!(file.version(), 3);
    assert_eq!(m.string("test.text").unwrap(), Some("Grüße, 世界"));
    assert_eq!(m.integers("test.numbers").unwrap(), Some(&[1, -2, 3][..]));
    assert_eq!(m.float("test.float").unwrap(), Some(f64::from(0.1f32)));
    assert_eq!(m.bool("test.bool").unwrap(), Some(true));
    assert_eq!(m.bool("test.absent").unwrap(), None);
    let e = m.bool("test.text").unwrap_err().to_string();
    assert!(e.contains("test.text") && e.contains("a string") && e.contains("a boolean"), "{e}");
}
