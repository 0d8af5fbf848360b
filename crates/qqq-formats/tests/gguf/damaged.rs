//! Files that are truncated or lie: an error that names the place, never a panic or a large allocation.

use qqq_formats::gguf::GgufFile;
use qqq_formats::{FormatError, TensorSource};

use crate::builder::{Builder, Kv, tiny};

/// The message with which opening fails.
fn refusal(bytes: Vec<u8>) -> String {
    match GgufFile::from_bytes("bad.gguf", bytes) {
        Ok(_) => panic!("was accepted"),
        Err(e) => {
            let message = e.to_string();
            assert!(message.starts_with("bad.gguf: "), "{message}");
            message
        }
    }
}

#[track_caller]
fn says(bytes: Vec<u8>, words: &[&str]) {
    let message = refusal(bytes);
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
}

/// `bytes` with the first occurrence of `from` replaced by `to` of the same length.
fn patch(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

#[test]
fn every_truncation_is_refused() {
    let file = tiny("llama")
        .kv("tokenizer.ggml.tokens", Kv::Strs(vec!["a".into(), "b".into()]))
        .kv("flag", Kv::Bool(true));
    let whole = file.build();
    let last = file.tensors.last().unwrap().bytes.len();
    // The padding after the last tensor may be missing.
    let needed = whole.len() - (last.next_multiple_of(32) - last);
    for n in 0..needed {
        assert!(
            GgufFile::from_bytes("bad.gguf", whole[..n].to_vec()).is_err(),
            "{n} of {} bytes",
            whole.len()
        );
    }
    assert!(GgufFile::from_bytes("good.gguf", whole[..needed].to_vec()).is_ok());
    says(whole[..needed - 1].to_vec(), &["blk.0.ffn_down.weight", "truncated"]);
}

#[test]
fn header_lies() {
    let whole = tiny("llama").build();
    let version = |v: u32| [&whole[..4], &v.to_le_bytes(), &whole[8..]].concat();
    says(b"GGML".to_vec(), &["not a GGUF file"]);
    says(b"GG".to_vec(), &["the magic number needs 4 bytes"]);
    says(version(1), &["version 1 is not supported"]);
    says(version(4), &["version 4 is not supported"]);
    says(version(3u32.swap_bytes()), &["big-endian"]);
    assert!(GgufFile::from_bytes("v2.gguf", version(2)).is_ok());
    let counts = |tensors: u64, kvs: u64| {
        [&whole[..8], &tensors.to_le_bytes(), &kvs.to_le_bytes(), &whole[24..]].concat()
    };
    says(counts(11, u64::MAX), &["metadata key"]);
    // The directory would run on into the tensors' bytes.
    says(counts(u64::MAX, 11), &["tensor \"\" has"]);
}

#[test]
fn metadata_lies() {
    let one = |value: Kv| Builder::default().kv("some.key", value).build();
    let length = one(Kv::Str("x".into()));
    // Layout: magic 4, version 4, counts 16, key length 8, key 8, type 4, value.
    let value_at = 4 + 4 + 16 + 8 + "some.key".len() + 4;
    let with = |bytes: &[u8], at: usize, new: &[u8]| [&bytes[..at], new, &bytes[at + new.len()..]].concat();
    says(with(&length, value_at, &u64::MAX.to_le_bytes()), &["some.key", "18446744073709551615 bytes"]);
    says(with(&length, value_at + 8, &[0xff]), &["some.key", "UTF-8"]);
    says(with(&length, value_at - 4, &77u32.to_le_bytes()), &["some.key", "unknown type 77"]);
    says(with(&one(Kv::Bool(true)), value_at, &[2]), &["some.key", "boolean with value 2"]);
    let list = one(Kv::Ints(vec![1, 2, 3]));
    says(with(&list, value_at + 4, &u64::MAX.to_le_bytes()), &["some.key", "18446744073709551615 elements"]);
    says(with(&list, value_at, &9u32.to_le_bytes()), &["some.key", "array of type 9"]);
    let strings = one(Kv::Strs(vec!["ab".into()]));
    says(with(&strings, value_at + 4, &(1u64 << 40).to_le_bytes()), &["some.key", "1099511627776 elements"]);
    says(
        Builder::default().kv("k", Kv::U32(1)).kv("k", Kv::U32(2)).build(),
        &["metadata key k occurs twice"],
    );
    for alignment in [0, 24] {
        says(
            Builder::default().kv("general.alignment", Kv::U32(alignment)).build(),
            &[format!("general.alignment is {alignment},").as_str()],
        );
    }
}

#[test]
fn tensor_directory_lies() {
    let one = |dims: &[u64], ty: u32| Builder::default().tensor("t", dims, ty, vec![0; 64]).build();
    says(one(&[4, u64::MAX], 0), &["\"t\"", "overflows"]);
    says(one(&[1 << 40, 1 << 40], 0), &["\"t\"", "overflows"]);
    says(one(&[1 << 40], 0), &["\"t\"", "4398046511104 bytes", "truncated"]);
    says(one(&[33], 2), &["\"t\"", "Q4_0", "33"]);
    says(one(&[32], 4), &["\"t\"", "type number 4"]);
    says(one(&[32], 4000), &["\"t\"", "type number 4000"]);
    says(one(&[1, 1, 1, 1, 1], 0), &["\"t\"", "5 dimensions"]);
    says(one(&[], 0), &["\"t\"", "0 dimensions"]);

    let twice = Builder::default().counting("t", &[8]).counting("t", &[8]).build();
    says(twice, &["\"t\" occurs twice"]);
    let both = tiny("qwen2").counting("model.norm.weight", &[8]).build();
    says(both, &["two tensors stand for \"model.norm.weight\""]);

    let two = Builder::default().counting("first", &[8]).counting("other", &[8]).build();
    let offset = |n: u64| patch(&two, &32u64.to_le_bytes(), &n.to_le_bytes());
    says(offset(0), &["\"first\"", "\"other\"", "overlap"]);
    says(offset(8), &["\"other\"", "alignment 32"]);
    says(offset(u64::MAX - 31), &["\"other\"", "18446744073709551584"]);
}

#[test]
fn heads_that_do_not_divide_the_rows_are_refused() {
    let heads = |n: u32| tiny("llama").set("llama.attention.head_count", Kv::U32(n)).build();
    says(heads(3), &["\"blk.0.attn_q.weight\" of shape [8, 8]", "3 heads"]);
    says(heads(8), &["\"blk.0.attn_q.weight\" of shape [8, 8]", "8 heads"]);
    says(heads(0), &["0 query heads"]);
    says(tiny("llama").set("llama.attention.head_count_kv", Kv::U32(7)).build(), &["7 key/value heads"]);
}

/// The header is read in pieces; a long one is as good, and as bad, as a short one.
#[test]
fn long_headers() {
    let long = "x".repeat(9 << 20);
    let whole = tiny("llama").kv("test.long", Kv::Str(long.clone())).kv("test.last", Kv::U32(7)).build();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.gguf");
    std::fs::write(&path, &whole).unwrap();
    for file in [GgufFile::open(&path).unwrap(), GgufFile::from_bytes("long.gguf", whole.clone()).unwrap()] {
        assert_eq!(file.metadata().string("test.long").unwrap(), Some(long.as_str()));
        assert_eq!(file.metadata().size("test.last").unwrap(), Some(7));
        assert!(file.config().is_ok());
    }
    // Within the string, and behind what is read at first.
    for size in [1 << 20, 5 << 20, 8 << 20] {
        std::fs::write(&path, &whole[..size]).unwrap();
        let message = GgufFile::open(&path).err().unwrap().to_string();
        assert!(message.contains("long.gguf") && message.contains("claims 9437184 bytes"), "{message}");
    }
}

#[test]
fn reading_says_what_is_wrong() {
    let inf = [1.0f32, f32::INFINITY, f32::NAN].iter().flat_map(|x| x.to_le_bytes()).collect();
    // Q8_0 with an infinite scale.
    let q8 = [&[0x00, 0x7c][..], &[1; 32]].concat();
    let file = Builder::default()
        .tensor("inf", &[3], 0, inf)
        .tensor("q8", &[32], 8, q8)
        .tensor("iq4", &[32], 20, vec![0; 18])
        .tensor("int", &[2], 26, vec![0; 8])
        .build();
    let file = GgufFile::from_bytes("bad.gguf", file).unwrap();
    let message = |name: &str, shape: &[usize]| file.float(name, shape).unwrap_err().to_string();
    assert!(matches!(file.float("inf", &[3]), Err(FormatError::NotFinite { count: 2, first: 1, .. })));
    assert!(matches!(file.float("q8", &[32]), Err(FormatError::NotFinite { count: 32, first: 0, .. })));
    let unsupported = message("iq4", &[32]);
    assert!(unsupported.contains("\"iq4\" has type IQ4_NL") && unsupported.contains("Q4_K"), "{unsupported}");
    assert!(message("int", &[2]).contains("\"int\" has type I32"));
    assert!(matches!(file.float("int", &[3]), Err(FormatError::Shape { .. })));
    assert!(matches!(file.float("none", &[3]), Err(FormatError::MissingTensor { .. })));
    assert_eq!(file.bytes("iq4").unwrap().len(), 18);
}
