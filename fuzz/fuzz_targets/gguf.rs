//! GGUF files: nothing that a file says may panic, or allocate more than a few times its size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qqq_formats::{TensorSource, gguf::GgufFile};

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = GgufFile::from_bytes("fuzz.gguf", bytes.to_vec()) else {
        return;
    };
    for name in file.names() {
        let info = file.info(&name).expect("a listed tensor exists");
        assert_eq!(file.bytes(&name).expect("a listed tensor has bytes").len() as u64, info.bytes);
        let _ = file.float(&name, &info.shape);
    }
    if let Ok(config) = file.config() {
        assert!(config.num_heads * config.head_dim > 0);
    }
    for (key, _) in file.metadata().iter() {
        let _ = file.metadata().strings(key);
        let _ = file.metadata().token_id(key);
    }
});
