//! NVRTC, NVIDIA's compiler as a library: found and loaded at run time.

use std::env::consts::ARCH;
use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::Instant;

use libloading::Library;

use super::source::{HEADERS, OPTIONS};
use super::{Arch, JitError, Result, Source};

type Program = *mut std::ffi::c_void;

/// The functions that are used. The library is never unloaded: NVRTC keeps threads and state.
struct Functions {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

/// A loaded NVRTC.
pub struct Nvrtc {
    path: PathBuf,
    version: (u32, u32),
    functions: Functions,
}

impl std::fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nvrtc").field("path", &self.path).field("version", &self.version).finish()
    }
}

/// A compiled source.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Machine code for one architecture, as the driver loads it (ELF).
    pub cubin: Vec<u8>,
    /// What the compiler printed; see [`Resources`](super::Resources).
    pub log: String,
    /// Seconds it took.
    pub seconds: f64,
}

impl Nvrtc {
    /// The oldest version whose code for Hopper is good: 12.4 and 12.8 serialize the wgmma of our kernels.
    pub const RECOMMENDED: (u32, u32) = (12, 9);

    /// The first NVRTC that is not older than [`RECOMMENDED`](Self::RECOMMENDED), or else the first usable one, among:
    /// `QQQ_NVRTC` (the library or its folder; nothing else is tried when it is set, and not empty), the toolkit of
    /// `CUDA_HOME` or `CUDA_PATH`, the wheels of the active Python environment and of the system's Pythons,
    /// `/usr/local/cuda*`, and the loader's own path.
    ///
    /// # Errors
    /// [`JitError::NvrtcNotFound`] with all places, or [`JitError::NvrtcUnusable`] for `QQQ_NVRTC`.
    pub fn find() -> Result<Self> {
        if let Some(path) = std::env::var_os("QQQ_NVRTC").filter(|v| !v.is_empty()) {
            let path = PathBuf::from(path);
            let found = match libraries_in(&path).first() {
                Some(library) => Self::open(library),
                None if path.is_dir() => Err(JitError::NvrtcUnusable {
                    path,
                    reason: String::from("a folder without a libnvrtc.so"),
                }),
                None => Self::open(&path),
            };
            return found.map_err(|error| match error {
                JitError::NvrtcUnusable { path, reason } => {
                    JitError::NvrtcUnusable { path, reason: format!("{reason} (QQQ_NVRTC names it)") }
                }
                error => error,
            });
        }
        let mut searched = Vec::new();
        let mut old = None;
        for folder in folders() {
            let libraries = libraries_in(&folder);
            if libraries.is_empty() {
                searched.push(format!("{}: none there", folder.display()));
            }
            for library in libraries {
                match Self::open(&library) {
                    Ok(found) if found.version >= Self::RECOMMENDED => return Ok(found),
                    Ok(found) => old = old.or(Some(found)),
                    Err(error) => searched.push(error.to_string()),
                }
            }
        }
        for name in ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"] {
            match Self::open(Path::new(name)) {
                Ok(found) if found.version >= Self::RECOMMENDED => return Ok(found),
                Ok(found) => old = old.or(Some(found)),
                Err(error) => searched.push(error.to_string()),
            }
        }
        if let Some(found) = old {
            tracing::warn!(
                "{}: NVRTC {}.{} makes slow code for Hopper GPUs; 12.9 or newer is better",
                found.path.display(),
                found.version.0,
                found.version.1
            );
            return Ok(found);
        }
        Err(JitError::NvrtcNotFound { searched })
    }

    /// Loads a library, and what it needs beside it.
    ///
    /// # Errors
    /// [`JitError::NvrtcUnusable`].
    pub fn open(path: &Path) -> Result<Self> {
        let unusable = |reason: String| JitError::NvrtcUnusable { path: path.to_owned(), reason };
        // SAFETY: loading NVRTC runs its initializers, which have no requirements.
        let library = unsafe { Library::new(path) }.map_err(|e| unusable(e.to_string()))?;
        let functions = Functions::load(&library).map_err(|e| unusable(e.to_string()))?;
        std::mem::forget(library);
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are to integers.
        let code = unsafe { (functions.version)(&raw mut major, &raw mut minor) };
        if code != 0 {
            return Err(unusable(format!("nvrtcVersion failed: {}", functions.describe(code))));
        }
        let version = (major as u32, minor as u32);
        load_builtins(path, version);
        Ok(Self { path: path.to_owned(), version, functions })
    }

    /// Major and minor version.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Compiles a source to machine code. Sources may be compiled at the same time by several threads.
    ///
    /// # Errors
    /// [`JitError::Compile`] with the log.
    pub fn compile(&self, source: &Source, arch: Arch) -> Result<Compiled> {
        let start = Instant::now();
        let failed = |log: String| JitError::Compile {
            name: source.name.clone(),
            arch: arch.to_string(),
            version: format!("{}.{} ({})", self.version.0, self.version.1, self.path.display()),
            log,
        };
        let text = |s: &str| CString::new(s).expect("kernels have no NUL");
        let (code, name) = (text(&source.text), text(&format!("{}.cu", source.name)));
        let (names, headers): (Vec<_>, Vec<_>) = HEADERS.iter().map(|(n, h)| (text(n), text(h))).unzip();
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let mut program = ptr::null_mut();
        // SAFETY: all strings outlive the call, which copies them; the arrays have the length given.
        let created = unsafe {
            (self.functions.create)(
                &raw mut program,
                code.as_ptr(),
                name.as_ptr(),
                HEADERS.len() as c_int,
                pointers(&headers).as_ptr(),
                pointers(&names).as_ptr(),
            )
        };
        if created != 0 {
            return Err(failed(self.functions.describe(created)));
        }
        let program = Owned { program, functions: &self.functions };
        let mut options = vec![text(&format!("--gpu-architecture={arch}"))];
        options.extend(OPTIONS.iter().map(|o| text(o)));
        let options = (pointers(&options), options);
        // SAFETY: the program was created above; the options outlive the call.
        let compiled = unsafe {
            (self.functions.compile)(program.program, options.0.len() as c_int, options.0.as_ptr())
        };
        let log = program.bytes(self.functions.log_size, self.functions.log);
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned();
        if compiled != 0 {
            return Err(failed(format!("{}\n{log}", self.functions.describe(compiled))));
        }
        let cubin = program.bytes(self.functions.cubin_size, self.functions.cubin);
        if cubin.is_empty() {
            return Err(failed(String::from("NVRTC made no machine code")));
        }
        Ok(Compiled { cubin, log, seconds: start.elapsed().as_secs_f64() })
    }
}

/// A program that is destroyed at the end.
struct Owned<'a> {
    program: Program,
    functions: &'a Functions,
}

impl Owned<'_> {
    /// What a pair of functions gives: its size, then its bytes. Empty when NVRTC refuses.
    fn bytes(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Vec<u8> {
        let mut length = 0;
        // SAFETY: the program is alive; the second call writes as many bytes as the first one states.
        unsafe {
            if size(self.program, &raw mut length) != 0 {
                return Vec::new();
            }
            let mut bytes = vec![0u8; length];
            if get(self.program, bytes.as_mut_ptr().cast()) != 0 {
                return Vec::new();
            }
            bytes
        }
    }
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        // SAFETY: created by nvrtcCreateProgram and destroyed only here.
        unsafe { (self.functions.destroy)(&raw mut self.program) };
    }
}

impl Functions {
    fn load(library: &Library) -> std::result::Result<Self, libloading::Error> {
        // SAFETY: the signatures are those of nvrtc.h, unchanged since CUDA 11.1.
        unsafe {
            Ok(Self {
                version: *library.get(b"nvrtcVersion\0")?,
                create: *library.get(b"nvrtcCreateProgram\0")?,
                destroy: *library.get(b"nvrtcDestroyProgram\0")?,
                compile: *library.get(b"nvrtcCompileProgram\0")?,
                log_size: *library.get(b"nvrtcGetProgramLogSize\0")?,
                log: *library.get(b"nvrtcGetProgramLog\0")?,
                cubin_size: *library.get(b"nvrtcGetCUBINSize\0")?,
                cubin: *library.get(b"nvrtcGetCUBIN\0")?,
                error_string: *library.get(b"nvrtcGetErrorString\0")?,
            })
        }
    }

    fn describe(&self, code: c_int) -> String {
        // SAFETY: NVRTC returns a static string for every code.
        unsafe { CStr::from_ptr((self.error_string)(code)) }.to_string_lossy().into_owned()
    }
}

/// Loads libnvrtc-builtins from the folder of the library. NVRTC loads it by name when it compiles, and some wheels
/// (13.0) do not tell the loader where it is; a library that is loaded already is found by its name. Where there is
/// none, NVRTC's own search may still find it, or says so when it compiles.
fn load_builtins(path: &Path, (major, minor): (u32, u32)) {
    let Some(folder) = path.parent() else { return };
    let file = folder.join(format!("libnvrtc-builtins.so.{major}.{minor}"));
    if file.is_file() {
        // SAFETY: the library's initializers are NVIDIA's; they ask nothing of the caller.
        if let Ok(library) = unsafe { Library::new(file) } {
            std::mem::forget(library);
        }
    }
}

/// The libraries `libnvrtc.so*` of a folder, newest first; a path that is a file stands for itself.
fn libraries_in(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let Ok(entries) = path.read_dir() else { return Vec::new() };
    let mut found: Vec<_> = entries
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| n == "libnvrtc.so" || n.starts_with("libnvrtc.so."))
        .collect();
    found.sort_by_key(|n| std::cmp::Reverse(version_in(n)));
    found.into_iter().map(|n| path.join(n)).collect()
}

/// The numbers in a name, for comparison.
fn version_in(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

/// Folders that may hold NVRTC, best first.
fn folders() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let mut folders = Vec::new();
    for toolkit in ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable) {
        folders.extend(toolkit_folders(&toolkit));
    }
    for environment in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable) {
        folders.extend(wheel_folders(&environment.join("lib")));
    }
    if let Some(home) = dirs::home_dir() {
        folders.extend(wheel_folders(&home.join(".local/lib")));
    }
    for lib in ["/usr/local/lib", "/usr/lib"] {
        folders.extend(wheel_folders(Path::new(lib)));
    }
    for toolkit in children(Path::new("/usr/local"), |n| n == "cuda" || n.starts_with("cuda-")) {
        folders.extend(toolkit_folders(&toolkit));
    }
    folders
}

fn toolkit_folders(toolkit: &Path) -> [PathBuf; 2] {
    let target = if ARCH == "aarch64" { "targets/sbsa-linux/lib" } else { "targets/x86_64-linux/lib" };
    [toolkit.join("lib64"), toolkit.join(target)]
}

/// NVRTC's wheels in the Pythons of a `lib` folder.
fn wheel_folders(lib: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for python in children(lib, |n| n.starts_with("python3")) {
        for packages in ["site-packages", "dist-packages"] {
            for wheel in ["cu13", "cuda_nvrtc"] {
                let folder = python.join(packages).join("nvidia").join(wheel).join("lib");
                if folder.is_dir() {
                    folders.push(folder);
                }
            }
        }
    }
    folders
}

/// Entries of a folder with a fitting name, highest version first.
fn children(folder: &Path, fits: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let Ok(entries) = folder.read_dir() else { return Vec::new() };
    let mut names: Vec<_> =
        entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).filter(|n| fits(n)).collect();
    names.sort_by_key(|n| std::cmp::Reverse(version_in(n)));
    names.into_iter().map(|n| folder.join(n)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_library_and_python_first() {
        let root = tempfile::tempdir().unwrap();
        let touch = |path: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        };
        touch("a/libnvrtc.so.12");
        touch("a/libnvrtc.so.13");
        touch("a/libnvrtc.so");
        touch("a/libnvrtc-builtins.so.13.5");
        let names: Vec<_> = libraries_in(&root.path().join("a"))
            .iter()
            .map(|p| p.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]);
        touch("lib/python3.9/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12");
        touch("lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13");
        let wheels = wheel_folders(&root.path().join("lib"));
        assert!(wheels[0].ends_with("python3.12/site-packages/nvidia/cu13/lib"), "{wheels:?}");
        assert_eq!(wheels.len(), 2);
    }

    #[test]
    fn a_file_that_is_no_library() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Nvrtc::open(file.path()).unwrap_err().to_string();
        assert!(error.contains("not a usable NVRTC"), "{error}");
    }
}
