//! Runs CUDA kernels on the CPU: their sources, compiled by the host's C++ compiler with emulated instructions (the
//! files beside this one), on a machine whose timing is random.

mod memory;

use std::ffi::{CStr, OsString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use libloading::Library;
use qqq_backend::pool::parallel_for;
use qqq_cuda::jit::source::HEADERS;
use qqq_cuda::tensor_map::{TensorMap, TiledMatrix};
use qqq_cuda::{KernelType, Result, Source};
use tempfile::TempDir;

pub use memory::{Memory, Region};

const FILES: [&str; 6] = ["machine", "fiber", "memory", "barriers", "transfers", "matrices"];
/// Kernels of a translation unit: more share the headers, fewer share the cores.
const UNIT: usize = 6;

struct Kernel {
    source: Source,
    enter: unsafe extern "C" fn(*const c_void),
    parameter_bytes: usize,
    /// Static shared memory is static memory of the library.
    alone: Mutex<()>,
}

/// Kernels that can be run.
pub struct Emulator {
    kernels: Vec<Kernel>,
    emulate: unsafe extern "C" fn(
        unsafe extern "C" fn(*const c_void),
        *const c_void,
        *const Launch,
        *mut c_char,
        u64,
    ),
    // Last: the functions above are its.
    _library: Library,
}

/// `Launch` of `machine.h`.
#[repr(C)]
struct Launch {
    blocks: u64,
    threads: u64,
    cluster: u64,
    shared_bytes: u64,
    resident: u64,
    seed: u64,
    memory: *const Region,
    memory_count: u64,
    late: *const Region,
    late_count: u64,
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub blocks: usize,
    pub threads: usize,
    /// Blocks of a cluster.
    pub cluster: usize,
    pub shared_bytes: usize,
    /// Whether all clusters run at the same time, or one after the other.
    pub together: bool,
}

impl Emulator {
    /// Compiles kernels.
    pub fn new(compiler: &OsString, sources: Vec<Source>) -> Self {
        Self::with_headers(compiler, sources, |_, text| text.to_owned())
    }

    /// The same with other headers: `edit` gets a header's name and text.
    pub fn with_headers(
        compiler: &OsString,
        sources: Vec<Source>,
        edit: impl Fn(&str, &str) -> String,
    ) -> Self {
        let folder = TempDir::new().unwrap();
        let kernels = folder.path().join("kernels");
        std::fs::create_dir(&kernels).unwrap();
        for (name, text) in HEADERS {
            // Those that are emulated must not be found beside the others.
            if !beside(name).exists() {
                std::fs::write(kernels.join(name), edit(name, text)).unwrap();
            }
        }
        let mut objects = runtime(compiler).to_vec();
        // A unit's kernels include the same header.
        let units: Vec<_> =
            sources.chunk_by(|a, b| include(a) == include(b)).flat_map(|alike| alike.chunks(UNIT)).collect();
        let object = |unit: usize| folder.path().join(format!("unit{unit}.o"));
        parallel_for(units.len(), |i| {
            let first = units[..i].iter().map(|unit| unit.len()).sum();
            let file = folder.path().join(format!("unit{i}.cpp"));
            std::fs::write(&file, unit_text(first, units[i])).unwrap();
            compile(compiler, "-O1", &file, &object(i), Some(&kernels));
        });
        objects.extend((0..units.len()).map(object));
        let library = folder.path().join("kernels.so");
        let mut link = Command::new(compiler);
        run(link.arg("-shared").arg("-o").arg(&library).args(&objects));
        // SAFETY: the library was built above, and has no initializers of note.
        let library = unsafe { Library::new(&library) }.unwrap();
        let kernels = sources.into_iter().enumerate().map(|(i, source)| {
            // SAFETY: `unit_text` defines both functions with these types.
            unsafe {
                let enter = *library.get(format!("enter_{i}").as_bytes()).unwrap();
                let bytes: unsafe extern "C" fn() -> usize =
                    *library.get(format!("bytes_{i}").as_bytes()).unwrap();
                Kernel { source, enter, parameter_bytes: bytes(), alone: Mutex::new(()) }
            }
        });
        let kernels = kernels.collect();
        // SAFETY: machine.cpp defines it with this type.
        let emulate = unsafe { *library.get(b"emulate").unwrap() };
        Self { kernels, emulate, _library: library }
    }

    /// Launches the kernel of a source. What the launch before it still writes (`late`) is garbage until that ends,
    /// which may be at any time.
    ///
    /// # Errors
    /// What the kernel did wrong.
    pub fn launch(
        &self,
        source: &Source,
        shape: Shape,
        (parameters, bytes): (*const c_void, usize),
        memory: &Memory,
        late: &[Region],
        seed: u64,
    ) -> std::result::Result<(), String> {
        let kernel = self.kernels.iter().find(|k| k.source == *source).expect("compiled");
        assert_eq!(
            bytes, kernel.parameter_bytes,
            "the host's parameters and those of {} differ",
            source.name
        );
        let _alone = (!shape.together).then(|| kernel.alone.lock().unwrap());
        let regions = memory.regions();
        let launch = Launch {
            blocks: shape.blocks as u64,
            threads: shape.threads as u64,
            cluster: shape.cluster as u64,
            shared_bytes: shape.shared_bytes as u64,
            resident: u64::from(!shape.together),
            seed,
            memory: regions.as_ptr(),
            memory_count: regions.len() as u64,
            late: late.as_ptr(),
            late_count: late.len() as u64,
        };
        let mut message = vec![0u8; 8192];
        // SAFETY: the parameters are of the kernel's size, and point to memory of `memory`.
        unsafe {
            (self.emulate)(kernel.enter, parameters, &raw const launch, message.as_mut_ptr().cast(), 8192);
        }
        let message = CStr::from_bytes_until_nul(&message).unwrap().to_string_lossy();
        if message.is_empty() { memory.check_guards() } else { Err(message.into_owned()) }
    }
}

/// `Matrix` of `machine.h`, in place of what the driver encodes.
pub fn encode(m: &TiledMatrix) -> Result<TensorMap> {
    let mut map = [0; 16];
    let sizes = [m.shape.0, m.shape.1, m.element.bytes(), m.tile.0, m.tile.1].map(|v| v as u64);
    map[..2].copy_from_slice(&[0x7870_616D, m.address]);
    map[2..7].copy_from_slice(&sizes);
    Ok(TensorMap(map))
}

fn beside(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_emulated/emulator").join(name)
}

/// The emulated machine's objects, compiled once.
fn runtime(compiler: &OsString) -> &'static [PathBuf] {
    static RUNTIME: OnceLock<(Vec<PathBuf>, TempDir)> = OnceLock::new();
    let (objects, _) = RUNTIME.get_or_init(|| {
        let folder = TempDir::new().unwrap();
        let objects: Vec<_> = FILES.iter().map(|f| folder.path().join(f).with_extension("o")).collect();
        parallel_for(FILES.len(), |i| {
            compile(compiler, "-O3", &beside(FILES[i]).with_extension("cpp"), &objects[i], None);
        });
        (objects, folder)
    });
    objects
}

/// The line that includes the kernel's file.
fn include(source: &Source) -> &str {
    source.text.lines().next().unwrap()
}

/// Kernels as one translation unit, with numbers for names: one may come twice.
fn unit_text(first: usize, sources: &[Source]) -> String {
    let include = include(&sources[0]);
    let mut unit = format!("{include}\n");
    for (i, source) in sources.iter().enumerate() {
        let (i, function) = (first + i, source.function());
        let text = source.text.strip_prefix(include).expect("kernels of one unit include the same header");
        unit += &format!(
            "#define {function} kernel_{i}\n\
             namespace unit_{i} {{{text}}}\n\
             #undef {function}\n\
             extern \"C\" EXPORTED void enter_{i}(const void* p) {{ call_kernel(unit_{i}::kernel_{i}, p); }}\n\
             extern \"C\" EXPORTED size_t bytes_{i}() {{ return parameter_bytes(unit_{i}::kernel_{i}); }}\n"
        );
    }
    unit
}

fn compile(compiler: &OsString, optimization: &str, file: &Path, object: &Path, kernels: Option<&Path>) {
    let mut command = Command::new(compiler);
    command.args(["-std=c++17", optimization, "-march=native", "-fPIC", "-fvisibility=hidden", "-c"]);
    // Every operation is rounded by itself; jumps between stacks are meant; what is read before it is written must
    // show.
    command.args(["-ffp-contract=off", "-U_FORTIFY_SOURCE", "-ftrivial-auto-var-init=pattern"]);
    command.arg("-I").arg(beside(""));
    if let Some(kernels) = kernels {
        command.arg("-I").arg(kernels);
    }
    run(command.arg(file).arg("-o").arg(object));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
}
