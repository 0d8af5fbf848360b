//! Models that are split over several files: the same as the whole (scripts/make_gguf_vectors.py), whichever part is
//! named; and parts that do not belong together.

use std::fs;
use std::path::Path;

use qqq_formats::gguf::{GgufFile, split_parts};
use qqq_formats::{Checkpoint, TensorSource};

use crate::builder::{Builder, Kv, tiny};
use crate::data;

/// Part `number` (from 1) of 3.
fn name(number: usize) -> String {
    format!("tiny-{number:05}-of-00003.gguf")
}

/// Copies of the three parts.
fn parts(dir: &Path) {
    for number in 1..=3 {
        fs::copy(data("split").join(name(number)), dir.join(name(number))).unwrap();
    }
}

fn refusal(path: &Path) -> String {
    match Checkpoint::open(path) {
        Ok(_) => panic!("{} was accepted", path.display()),
        Err(e) => e.to_string(),
    }
}

#[track_caller]
fn says(path: &Path, words: &[&str]) {
    let message = refusal(path);
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
}

#[test]
fn any_part_opens_the_model() {
    let whole = GgufFile::open(&data("split").join("tiny.gguf")).unwrap();
    assert_eq!(whole.parts(), 1);
    let config = whole.config().unwrap();
    for number in 1..=3 {
        let path = data("split").join(name(number));
        let all = split_parts(path.to_str().unwrap()).unwrap();
        assert!(all.len() == 3 && all[number - 1] == path.to_str().unwrap());
        let split = GgufFile::open(&path).unwrap();
        assert_eq!(split.parts(), 3);
        assert_eq!(split.names(), whole.names());
        assert_eq!(split.names().len(), 11);
        for tensor in whole.names() {
            assert_eq!(split.info(&tensor), whole.info(&tensor), "{tensor}");
            assert_eq!(split.bytes(&tensor).unwrap(), whole.bytes(&tensor).unwrap(), "{tensor}");
        }
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.config.raw, config.raw);
        assert_eq!(checkpoint.path, path);
    }
}

/// Errors of a tensor name its file.
#[test]
fn messages_name_the_part() {
    let dir = tempfile::tempdir().unwrap();
    parts(dir.path());
    let split = GgufFile::open(&dir.path().join(name(1))).unwrap();
    let message = split.float("model.layers.0.mlp.down_proj.weight", &[1]).unwrap_err().to_string();
    assert!(message.contains(&name(3)), "{message}");
    let message = split.float("none", &[1]).unwrap_err().to_string();
    assert!(message.contains(&name(1)) && message.contains("2 more parts"), "{message}");
}

#[test]
fn missing_parts_are_named() {
    let dir = tempfile::tempdir().unwrap();
    parts(dir.path());
    fs::remove_file(dir.path().join(name(2))).unwrap();
    says(&dir.path().join(name(1)), &["part 1 of 3", "1 of its files is not beside it", &name(2)]);
    fs::remove_file(dir.path().join(name(1))).unwrap();
    says(&dir.path().join(name(3)), &["part 3 of 3", "2 of its files are not", &name(1), &name(2)]);
    says(&dir.path().join(name(1)), &[&name(1)]);
}

#[test]
fn parts_of_another_name_or_model() {
    let dir = tempfile::tempdir().unwrap();
    let at = |n: usize| dir.path().join(name(n));
    parts(dir.path());
    for other in ["model.gguf", "tiny-00002-of-00003.gguf", "tiny-00001-of-00004.gguf"] {
        let path = dir.path().join("other").join(other);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(at(1), &path).unwrap();
        says(&path, &["part 1 of 3", "NAME-00001-of-00003.gguf", "--merge"]);
    }
    // Two parts that are the same one.
    fs::copy(at(3), at(2)).unwrap();
    says(&at(1), &[&name(2), "part 3 of 3", "its name says 2 of 3"]);
    // A whole model among parts.
    parts(dir.path());
    fs::copy(data("split").join("tiny.gguf"), at(2)).unwrap();
    says(&at(1), &[&name(2), "part none of 1"]);

    let part = |number: u32, tensors: u32| {
        Builder::default()
            .kv("split.no", Kv::U32(number))
            .kv("split.count", Kv::U32(3))
            .kv("split.tensors.count", Kv::U32(tensors))
    };
    let second = |b: Builder| {
        parts(dir.path());
        fs::write(at(2), b.build()).unwrap();
    };
    second(part(1, 11).counting("blk.0.attn_v.weight", &[8, 4]));
    says(&at(1), &["split.tensors.count", "8 tensors", "says 11"]);
    second(part(1, 12));
    says(&at(1), &[&name(2), "its split.tensors.count differs", &name(1), "another model"]);
    second(part(1, 11).kv("general.architecture", Kv::Str("qwen2".into())));
    says(&at(1), &["its general.architecture differs"]);
    second(part(1, 11).counting("token_embd.weight", &[8, 10]));
    says(&at(1), &[&name(2), "\"token_embd.weight\" lies in", &name(1)]);
    let mut nameless = part(1, 11);
    nameless.kvs.retain(|(k, _)| k != "split.no");
    second(nameless);
    says(&at(1), &[&name(2), "part none of 3"]);
    says(&at(2), &["split.no is missing"]);
}

/// Files that bear a part's name without being one, and a split into one part, are models by themselves.
#[test]
fn whole_models_of_such_names() {
    let dir = tempfile::tempdir().unwrap();
    for (name, model) in [
        ("whole-00001-of-00002.gguf", tiny("llama")),
        ("one-00001-of-00001.gguf", tiny("llama").kv("split.no", Kv::U32(0)).kv("split.count", Kv::U32(1))),
        ("none.gguf", tiny("llama").kv("split.count", Kv::U32(0))),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, model.build()).unwrap();
        assert_eq!(Checkpoint::open(&path).unwrap().config.num_layers, 1, "{name}");
    }
}
