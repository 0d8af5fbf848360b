//! Archives of kernels that were compiled ahead of time.
//!
//! An archive is a zip file. Each kernel is a member `<architecture>/<key>.cubin`, where the key is [`Source::key`];
//! the member `index.json` says what the kernels are. A kernel is looked up by its key alone, which covers all that it
//! is made of: an archive of another version has nothing that fits, so it cannot be used by mistake.
//!
//! The build script, which looks at the archive that it embeds, includes this file too: it uses nothing but [`Arch`]
//! and [`Source`].

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

use super::{Arch, Source};

/// The member that says what the kernels are.
const INDEX: &str = "index.json";
/// What an index calls itself, with the version of the format.
const FORMAT: &str = "qqq-kernels-1";
/// No kernel and no index is as large.
const MAX_MEMBER_BYTES: u64 = 64 << 20;

/// A file that is no archive, or a damaged one.
#[derive(Debug, thiserror::Error)]
#[error("{place}: not a usable archive of kernels: {reason}")]
pub struct ArchiveError {
    /// The archive's file, or that it is part of the binary.
    pub place: String,
    /// What is wrong with the archive, in words.
    pub reason: String,
}

/// A kernel of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedKernel {
    /// What was compiled.
    pub source: Source,
    /// For which architecture.
    pub arch: Arch,
    /// Dynamic shared memory of a CTA, in bytes.
    pub shared_bytes: usize,
    /// Under which key it is found.
    pub key: String,
}

impl ArchivedKernel {
    /// With the key of this version's headers and options.
    pub fn new(source: Source, arch: Arch, shared_bytes: usize) -> Self {
        let key = source.key(arch);
        Self { source, arch, shared_bytes, key }
    }

    /// Whether this version's headers and options give the same kernel.
    pub fn is_current(&self) -> bool {
        self.key == self.source.key(self.arch)
    }
}

#[derive(Serialize, Deserialize)]
struct Index {
    format: String,
    kernels: Vec<IndexEntry>,
}

#[derive(Serialize, Deserialize)]
struct IndexEntry {
    key: String,
    architecture: String,
    name: String,
    shared_bytes: usize,
    text: String,
}

trait ReadSeek: Read + Seek {}
impl<T: Read + Seek> ReadSeek for T {}

/// An open archive.
pub struct Archive {
    place: String,
    zip: Mutex<ZipArchive<Box<dyn ReadSeek + Send>>>,
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archive").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Archive {
    /// Opens a file.
    ///
    /// # Errors
    /// When it cannot be read or is no archive of kernels.
    pub fn open(path: &Path) -> Result<Self, ArchiveError> {
        let place = path.display().to_string();
        match File::open(path) {
            Ok(file) => Self::new(Box::new(BufReader::new(file)), place),
            Err(error) => Err(ArchiveError { place, reason: error.to_string() }),
        }
    }

    /// An archive in memory; `place` is its name in messages.
    ///
    /// # Errors
    /// When it is no archive of kernels.
    pub fn from_bytes(
        bytes: impl Into<Cow<'static, [u8]>>,
        place: impl Into<String>,
    ) -> Result<Self, ArchiveError> {
        Self::new(Box::new(Cursor::new(bytes.into())), place.into())
    }

    fn new(file: Box<dyn ReadSeek + Send>, place: String) -> Result<Self, ArchiveError> {
        let failed = |reason| ArchiveError { place: place.clone(), reason };
        let zip = ZipArchive::new(file).map_err(|e| failed(e.to_string()))?;
        if zip.index_for_name(INDEX).is_none() {
            return Err(failed(format!("it has no {INDEX}; `qqq kernels build` makes such archives")));
        }
        Ok(Self { place, zip: Mutex::new(zip) })
    }

    /// Its name in messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The machine code of this key for an architecture; `None` when the archive has none.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn get(&self, key: &str, arch: Arch) -> Result<Option<Vec<u8>>, ArchiveError> {
        self.member(&member_name(key, arch))
    }

    /// What the archive holds.
    ///
    /// # Errors
    /// When the index is damaged, or that of a newer format.
    pub fn index(&self) -> Result<Vec<ArchivedKernel>, ArchiveError> {
        let failed = |reason| ArchiveError { place: self.place.clone(), reason };
        let bytes = self.member(INDEX)?.unwrap_or_default();
        let index: Index =
            serde_json::from_slice(&bytes).map_err(|e| failed(format!("its {INDEX} is damaged: {e}")))?;
        if index.format != FORMAT {
            return Err(failed(format!("its format is {:?}, this version reads {FORMAT:?}", index.format)));
        }
        let entry = |e: IndexEntry| {
            let arch = e.architecture.parse().map_err(failed)?;
            let source = Source { name: e.name, text: e.text };
            Ok(ArchivedKernel { source, arch, shared_bytes: e.shared_bytes, key: e.key })
        };
        index.kernels.into_iter().map(entry).collect()
    }

    /// Writes an archive. The same kernels give the same bytes.
    ///
    /// # Errors
    /// What `out` reports.
    pub fn write(out: impl Write + Seek, kernels: &[(ArchivedKernel, Vec<u8>)]) -> io::Result<()> {
        let mut zip = ZipWriter::new(out);
        // No time of day.
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .last_modified_time(zip::DateTime::DEFAULT);
        let entry = |k: &ArchivedKernel| IndexEntry {
            key: k.key.clone(),
            architecture: k.arch.to_string(),
            name: k.source.name.clone(),
            shared_bytes: k.shared_bytes,
            text: k.source.text.clone(),
        };
        let index =
            Index { format: FORMAT.to_owned(), kernels: kernels.iter().map(|(k, _)| entry(k)).collect() };
        zip.start_file(INDEX, options)?;
        zip.write_all(&serde_json::to_vec_pretty(&index)?)?;
        for (kernel, cubin) in kernels {
            zip.start_file(member_name(&kernel.key, kernel.arch), options)?;
            zip.write_all(cubin)?;
        }
        zip.finish()?.flush()
    }

    fn member(&self, name: &str) -> Result<Option<Vec<u8>>, ArchiveError> {
        let failed = |reason: String| ArchiveError {
            place: self.place.clone(),
            reason: format!("{name} is damaged: {reason}"),
        };
        let mut zip = self.zip.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(index) = zip.index_for_name(name) else { return Ok(None) };
        let file = zip.by_index(index).map_err(|e| failed(e.to_string()))?;
        if file.size() > MAX_MEMBER_BYTES {
            return Err(failed(format!("{} bytes are too many", file.size())));
        }
        let mut bytes = Vec::with_capacity(file.size() as usize);
        // The check sum is looked at when all was read.
        file.take(MAX_MEMBER_BYTES).read_to_end(&mut bytes).map_err(|e| failed(e.to_string()))?;
        Ok(Some(bytes))
    }
}

fn member_name(key: &str, arch: Arch) -> String {
    format!("{arch}/{key}.cubin")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(name: &str, arch: Arch) -> ArchivedKernel {
        let source = Source { name: name.to_owned(), text: format!("text of {name}") };
        ArchivedKernel::new(source, arch, 4096)
    }

    fn written(kernels: &[(ArchivedKernel, Vec<u8>)]) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        Archive::write(&mut out, kernels).unwrap();
        out.into_inner()
    }

    #[test]
    fn kernels_come_back() {
        let kernels = [
            (kernel("a", Arch::Sm80), b"fake machine code of a".to_vec()),
            (kernel("a", Arch::Sm90a), vec![7; 100_000]),
            (kernel("b", Arch::Sm80), Vec::new()),
        ];
        let bytes = written(&kernels);
        assert_eq!(bytes, written(&kernels), "not reproducible");
        assert!(bytes.len() < 10_000, "not compressed");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        for archive in [Archive::open(file.path()).unwrap(), Archive::from_bytes(bytes, "memory").unwrap()] {
            let index = archive.index().unwrap();
            assert_eq!(index, kernels.iter().map(|(k, _)| k.clone()).collect::<Vec<_>>());
            for (kernel, cubin) in &kernels {
                assert!(kernel.is_current());
                assert_eq!(archive.get(&kernel.key, kernel.arch).unwrap().as_ref(), Some(cubin));
            }
            // Neither another key nor the same key for another architecture.
            assert_eq!(archive.get(&kernel("c", Arch::Sm80).key, Arch::Sm80).unwrap(), None);
            assert_eq!(archive.get(&kernels[0].0.key, Arch::Sm90a).unwrap(), None);
        }
    }

    #[test]
    fn kernels_of_another_version_are_not_current() {
        let mut old = kernel("a", Arch::Sm80);
        old.key = "0".repeat(64);
        let archive = Archive::from_bytes(written(&[(old, b"old".to_vec())]), "old").unwrap();
        assert!(!archive.index().unwrap()[0].is_current());
        assert_eq!(archive.get(&kernel("a", Arch::Sm80).key, Arch::Sm80).unwrap(), None);
    }

    #[test]
    fn what_is_no_archive() {
        let mut other = ZipWriter::new(Cursor::new(Vec::new()));
        other.start_file("a.txt", SimpleFileOptions::default()).unwrap();
        let other = other.finish().unwrap().into_inner();
        for bad in [Vec::new(), b"some text".to_vec(), other] {
            let error = Archive::from_bytes(bad, "x.zip").unwrap_err().to_string();
            assert!(error.starts_with("x.zip: not a usable archive of kernels: "), "{error}");
        }
        let error = Archive::open(Path::new("/nowhere/k.zip")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/k.zip") && error.contains("No such file"), "{error}");
    }

    #[test]
    fn damage_is_noticed() {
        let code: Vec<u8> = (0..5000u32).map(|i| ((i * i) >> 3) as u8).collect();
        let kernel = kernel("a", Arch::Sm80);
        let whole = written(&[(kernel.clone(), code.clone())]);
        // Inside the compressed machine code, which is the largest part.
        let mut bad = whole.clone();
        let at = bad.len() / 2;
        bad[at] ^= 0x55;
        let got = Archive::from_bytes(bad, "bad").and_then(|a| a.get(&kernel.key, Arch::Sm80));
        assert!(got.is_err(), "{got:?}");
        assert!(Archive::from_bytes(whole[..whole.len() - 30].to_vec(), "short").is_err());
    }

    #[test]
    fn indices_of_other_formats_are_refused() {
        for (index, says) in [
            (r#"{"format":"qqq-kernels-9","kernels":[]}"#, "qqq-kernels-9"),
            (r#"{"format":"qqq-kernels-1"}"#, "index.json is damaged"),
            (
                r#"{"format":"qqq-kernels-1","kernels":[{"key":"k","architecture":"sm_1","name":"n","shared_bytes":0,"text":""}]}"#,
                "sm_1",
            ),
        ] {
            let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
            zip.start_file(INDEX, SimpleFileOptions::default()).unwrap();
            zip.write_all(index.as_bytes()).unwrap();
            let bytes = zip.finish().unwrap().into_inner();
            let error = Archive::from_bytes(bytes, "x").unwrap().index().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
