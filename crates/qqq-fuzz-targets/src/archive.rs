//! Archives of kernels: any bytes are either refused, or kernels that can be written to another archive and read from it.

use std::io::Cursor;

use qqq_cuda::Archive;

use crate::{Outcome, text};

/// Reads every kernel of an archive.
///
/// # Errors
/// It is no archive, or one that is damaged.
pub fn archive(bytes: &[u8]) -> Outcome {
    let archive = Archive::from_bytes(bytes.to_vec(), "fuzz.zip").map_err(text)?;
    let mut kernels = Vec::new();
    for kernel in archive.index().map_err(text)? {
        let missing = || format!("fuzz.zip: {} is in the index alone", kernel.source.name);
        let code = archive.get(&kernel.key, kernel.arch).map_err(text)?.ok_or_else(missing)?;
        kernels.push((kernel, code));
    }
    // Names of members that occur twice cannot be written.
    let mut out = Cursor::new(Vec::new());
    Archive::write(&mut out, &kernels).map_err(text)?;
    let again = Archive::from_bytes(out.into_inner(), "again.zip").expect("an archive that we wrote");
    let index = again.index().expect("an index that we wrote");
    assert!(index.iter().eq(kernels.iter().map(|(kernel, _)| kernel)), "another index");
    for (kernel, code) in &kernels {
        let read = again.get(&kernel.key, kernel.arch).expect("a kernel that we wrote");
        assert_eq!(read.as_ref(), Some(code), "{}", kernel.source.name);
    }
    Ok(())
}
