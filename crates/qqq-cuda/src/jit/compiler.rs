//! Kernels as machine code: compiled earlier, or now.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::archive::{Archive, ArchiveError};
use super::cache::Cache;
use super::{Arch, JitError, Nvrtc, Resources, Result, Source};

/// Looks a kernel up in the cache on disk, in the archive that is part of the binary and in the one that `QQQ_KERNELS`
/// names, in this order, and compiles it when it is in none of them. NVRTC is looked for when it is needed.
#[derive(Debug)]
pub struct Compiler {
    cache: Cache,
    embedded: Option<Archive>,
    archive: Option<(PathBuf, OnceLock<Archive>)>,
    nvrtc: OnceLock<Nvrtc>,
}

impl Default for Compiler {
    /// With the user's cache and both archives, as far as there are any.
    fn default() -> Self {
        let named = std::env::var_os("QQQ_KERNELS").filter(|v| !v.is_empty());
        let with_cache = Self::new(Cache::of_user());
        Self { embedded: embedded(), archive: named.map(|v| (v.into(), OnceLock::new())), ..with_cache }
    }
}

/// The archive that is part of this binary (cargo feature `prebuilt-kernels`).
pub fn embedded() -> Option<Archive> {
    #[cfg(feature = "prebuilt-kernels")]
    {
        let bytes: &'static [u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.zip"));
        Some(Archive::from_bytes(bytes, "the embedded kernels").expect("the build script has looked at it"))
    }
    #[cfg(not(feature = "prebuilt-kernels"))]
    None
}

impl Compiler {
    /// With this cache and no archive.
    pub fn new(cache: Cache) -> Self {
        Self { cache, embedded: None, archive: None, nvrtc: OnceLock::new() }
    }

    /// With an archive file, in the place of the one that `QQQ_KERNELS` names. It is opened when it is needed.
    #[must_use]
    pub fn with_archive(self, path: impl Into<PathBuf>) -> Self {
        Self { archive: Some((path.into(), OnceLock::new())), ..self }
    }

    /// The machine code of a source.
    ///
    /// # Errors
    /// As [`prebuilt`](Self::prebuilt) and [`compile`](Self::compile).
    pub fn cubin(&self, source: &Source, arch: Arch) -> Result<Vec<u8>> {
        match self.prebuilt(source, arch)? {
            Some(cubin) => Ok(cubin),
            None => Ok(self.compile(source, arch)?.0),
        }
    }

    /// The machine code of a source, if it was compiled earlier.
    ///
    /// # Errors
    /// [`JitError::Archive`] when the archive file is needed and cannot be used.
    pub fn prebuilt(&self, source: &Source, arch: Arch) -> Result<Option<Vec<u8>>> {
        let key = source.key(arch);
        if let Some(cubin) = self.cache.get(&key) {
            return Ok(Some(cubin));
        }
        for archive in [self.embedded.as_ref(), self.archive_file()?].into_iter().flatten() {
            if let Some(cubin) = archive.get(&key, arch)? {
                tracing::debug!("{} for {arch} comes from {}", source.name, archive.place());
                return Ok(Some(cubin));
            }
        }
        Ok(None)
    }

    /// Compiles a source and keeps the machine code in the cache.
    ///
    /// # Errors
    /// [`JitError::NoKernel`] without NVRTC; [`JitError::Compile`] when the compilation fails.
    pub fn compile(&self, source: &Source, arch: Arch) -> Result<(Vec<u8>, Resources)> {
        let nvrtc = self.nvrtc().map_err(|error| JitError::NoKernel {
            name: source.name.clone(),
            arch: arch.to_string(),
            places: self.places(),
            nvrtc: Box::new(error),
        })?;
        let compiled = nvrtc.compile(source, arch)?;
        tracing::debug!("compiled {} for {arch} in {:.2} s", source.name, compiled.seconds);
        let resources = Resources::from_log(&compiled.log);
        if resources.warnings.is_empty() {
            self.cache.put(&source.key(arch), &compiled.cubin);
        } else {
            // A newer compiler does better: this one's code is not kept.
            tracing::warn!("{} for {arch}: {}", source.name, resources.warnings.join("; "));
        }
        Ok((compiled.cubin, resources))
    }

    fn archive_file(&self) -> Result<Option<&Archive>> {
        let Some((path, archive)) = &self.archive else { return Ok(None) };
        if let Some(open) = archive.get() {
            return Ok(Some(open));
        }
        let open = Archive::open(path)
            .map_err(|e| ArchiveError { place: format!("QQQ_KERNELS, {}", e.place), ..e })?;
        Ok(Some(archive.get_or_init(|| open)))
    }

    /// Where a kernel that was not found could have been.
    fn places(&self) -> Vec<String> {
        let cache = self.cache.folder().map(Path::display);
        let file = self.archive.as_ref().map(|(path, _)| path.display());
        vec![
            cache.map_or(String::from("the cache: switched off"), |c| format!("the cache {c}: not in it")),
            String::from(match self.embedded {
                Some(_) => "the kernels in this binary: not among them",
                None => "the kernels in this binary: built without any (cargo feature prebuilt-kernels)",
            }),
            file.map_or(String::from("QQQ_KERNELS: not set"), |f| {
                format!("QQQ_KERNELS, {f}: not in it; was it made by this very version?")
            }),
        ]
    }

    fn nvrtc(&self) -> Result<&Nvrtc> {
        if let Some(n) = self.nvrtc.get() {
            return Ok(n);
        }
        let found = Nvrtc::find()?;
        Ok(self.nvrtc.get_or_init(|| found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jit::archive::ArchivedKernel;

    fn source(name: &str) -> Source {
        Source { name: name.to_owned(), text: format!("text of {name}") }
    }

    /// An archive with machine code for these sources.
    fn archive(folder: &Path, file: &str, names: &[&str]) -> PathBuf {
        let cubin = |name: &str| format!("{name} of {file}").into_bytes();
        let kernels: Vec<_> =
            names.iter().map(|n| (ArchivedKernel::new(source(n), Arch::Sm80, 0), cubin(n))).collect();
        let path = folder.join(file);
        Archive::write(std::fs::File::create(&path).unwrap(), &kernels).unwrap();
        path
    }

    #[test]
    fn the_cache_then_the_embedded_archive_then_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::in_folder(folder.path().join("cache"));
        cache.put(&source("a").key(Arch::Sm80), b"a of cache");
        let embedded = archive(folder.path(), "embedded", &["a", "b"]);
        let file = archive(folder.path(), "file", &["a", "b", "c"]);
        let compiler = Compiler { embedded: Some(Archive::open(&embedded).unwrap()), ..Compiler::new(cache) }
            .with_archive(file);
        let got = |name: &str, arch| {
            let cubin = compiler.prebuilt(&source(name), arch).unwrap();
            cubin.map(|c| String::from_utf8(c).unwrap())
        };
        assert_eq!(got("a", Arch::Sm80).as_deref(), Some("a of cache"));
        assert_eq!(got("b", Arch::Sm80).as_deref(), Some("b of embedded"));
        assert_eq!(got("c", Arch::Sm80).as_deref(), Some("c of file"));
        assert_eq!(compiler.cubin(&source("c"), Arch::Sm80).unwrap(), b"c of file");
        assert_eq!(got("d", Arch::Sm80), None);
        assert_eq!(got("c", Arch::Sm86), None);
    }

    #[test]
    fn an_archive_that_was_named_must_be_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k.zip");
        std::fs::write(&path, "no archive").unwrap();
        for path in [path, folder.path().join("none")] {
            let compiler = Compiler::new(Cache::none()).with_archive(&path);
            let error = compiler.prebuilt(&source("a"), Arch::Sm80).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }

    #[test]
    fn an_error_names_all_places() {
        let compiler = Compiler::new(Cache::in_folder("/the/cache")).with_archive("/the/archive");
        let nvrtc = Box::new(JitError::NvrtcNotFound { searched: vec![String::from("/usr: none there")] });
        let places = compiler.places();
        let error = JitError::NoKernel { name: "k".into(), arch: "sm_80".into(), places, nvrtc }.to_string();
        for place in ["/the/cache", "in this binary", "QQQ_KERNELS, /the/archive", "/usr: none there"] {
            assert!(error.contains(place), "{error}");
        }
        let places = Compiler::new(Cache::none()).places();
        assert!(places[0].contains("switched off") && places[2].contains("not set"), "{places:?}");
    }
}
