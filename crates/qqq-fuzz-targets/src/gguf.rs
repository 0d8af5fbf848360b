//! GGUF files: nothing that a file says may panic, or allocate more than a few times its size.

use qqq_formats::{TensorSource, gguf::GgufFile};

use crate::{Outcome, text};

/// Reads a file, all of its tensors and its configuration.
///
/// # Errors
/// The first thing that is not as it should be, when all was read.
pub fn gguf(bytes: &[u8]) -> Outcome {
    let file = GgufFile::from_bytes("fuzz.gguf", bytes.to_vec()).map_err(text)?;
    let mut outcome = Ok(());
    for name in file.names() {
        let info = file.info(&name).expect("a listed tensor exists");
        assert_eq!(file.bytes(&name).expect("a listed tensor has bytes").len() as u64, info.bytes);
        outcome = outcome.and(file.float(&name, &info.shape).map(drop).map_err(text));
    }
    match file.config() {
        Ok(config) => assert!(config.num_heads * config.head_dim > 0),
        Err(error) => outcome = outcome.and(Err(text(error))),
    }
    for (key, _) in file.metadata().iter() {
        // A key of another type is refused, which says nothing of the file.
        let _ = file.metadata().strings(key);
        let _ = file.metadata().token_id(key);
    }
    outcome
}
