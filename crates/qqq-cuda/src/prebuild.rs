//! Compiling kernels ahead of time.

use std::sync::{Mutex, PoisonError};

use qqq_backend::pool;

use crate::DType;
use crate::ceilings;
use crate::decoder::attention::AttentionConfig;
use crate::decoder::calibrate::kernels::CalibrationKernel;
use crate::decoder::head::HeadKernel;
use crate::decoder::rows::RowConfig;
use crate::decoder::simulated::SimulatedKernel;
use crate::decoder::steps::StepKernel;
use crate::gemm::prepack::{self, Direction};
use crate::gemm::{GemmTypes, WeightKind, instances};
use crate::jit::archive::ArchivedKernel;
use crate::jit::{Arch, Compiler, JitError, Nvrtc, Result};
use crate::quantize::QuantizeConfig;

/// Which kernels; an empty list means all.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Products with these weights.
    pub weights: Vec<WeightKind>,
    /// Products with these activations.
    pub activations: Vec<DType>,
    /// Products with this output.
    pub outputs: Vec<DType>,
    /// Products whose tiles have these numbers of tokens.
    pub tokens: Vec<usize>,
}

impl Selection {
    /// Whether nothing is left out.
    pub fn is_all(&self) -> bool {
        self.weights.is_empty()
            && self.activations.is_empty()
            && self.outputs.is_empty()
            && self.tokens.is_empty()
    }
}

/// The kernels that GPUs of an architecture may ask for: every instance of the products that can be chosen there (on
/// Hopper the kernels for every GPU too, which can be asked for by name) and, unless some were selected, what prepacks
/// weights, quantizes activations, and measures ceilings.
pub fn kernels(arch: Arch, selection: &Selection) -> Vec<ArchivedKernel> {
    fn asked<T: PartialEq>(list: &[T], value: &T) -> bool {
        list.is_empty() || list.contains(value)
    }
    let mut kernels = Vec::new();
    let types = GemmTypes::all().into_iter();
    for types in types.filter(|t| {
        asked(&selection.weights, &t.weights())
            && asked(&selection.outputs, &t.output())
            && asked(&selection.activations, &t.activation())
    }) {
        let mut all = instances(types, arch);
        if arch == Arch::Sm90a {
            all.extend(instances(types, Arch::Sm80));
        }
        kernels.extend(
            all.into_iter()
                .filter(|i| asked(&selection.tokens, &i.tile().tokens))
                .map(|i| ArchivedKernel::new(i.source(), arch, i.tile().shared_bytes)),
        );
    }
    if selection.is_all() {
        for weights in WeightKind::ALL {
            let sources = [Direction::Pack, Direction::Unpack].map(|d| prepack::source(weights, d));
            kernels.extend(sources.map(|source| ArchivedKernel::new(source, arch, 0)));
        }
        let quantize = QuantizeConfig::all().into_iter();
        kernels.extend(quantize.map(|c| ArchivedKernel::new(c.source(), arch, 0)));
        let rows = RowConfig::all().into_iter();
        kernels.extend(rows.map(|c| ArchivedKernel::new(c.source(), arch, 0)));
        for config in AttentionConfig::all(arch) {
            for (kernel, shared) in config.kernels() {
                kernels.push(ArchivedKernel::new(config.source(kernel), arch, shared));
            }
        }
        let steps = StepKernel::all().into_iter();
        kernels.extend(steps.map(|s| ArchivedKernel::new(s.source(), arch, 0)));
        let heads = HeadKernel::all().into_iter();
        kernels.extend(heads.map(|h| ArchivedKernel::new(h.source(), arch, 0)));
        let calibration = CalibrationKernel::all().into_iter();
        kernels.extend(calibration.map(|c| ArchivedKernel::new(c.source(), arch, 0)));
        let simulated = SimulatedKernel::all().into_iter();
        kernels.extend(simulated.map(|s| ArchivedKernel::new(s.source(), arch, 0)));
        let ceilings = ceilings::sources(arch).into_iter();
        kernels.extend(ceilings.map(|(source, shared)| ArchivedKernel::new(source, arch, shared)));
    }
    kernels
}

/// The machine code of all these kernels, in their order: what `compiler` has, and the rest compiled on the [pool].
/// `on_done` is told each kernel that is ready, one at a time, on the thread that made it; `None` when it gives false,
/// which ends the work.
///
/// # Errors
/// As [`Compiler::cubin`]; also when the compiler's code is slow ([`JitError::SlowCode`]), which must not be handed on.
pub fn compile_all(
    compiler: &Compiler,
    kernels: &[ArchivedKernel],
    on_done: &mut (dyn FnMut(&ArchivedKernel) -> bool + Send),
) -> Result<Option<Vec<Vec<u8>>>> {
    let mut cubins: Vec<Option<Result<Vec<u8>>>> = Vec::new();
    cubins.resize_with(kernels.len(), || None);
    // Gone once the work is to end.
    let on_done = Mutex::new(Some(on_done));
    let lock = || on_done.lock().unwrap_or_else(PoisonError::into_inner);
    pool::parallel_each_mut(&mut cubins, |i, cubin| {
        if lock().is_none() {
            return;
        }
        let made = cubin.insert(good_cubin(compiler, &kernels[i]));
        let mut on_done = lock();
        if made.is_err() || on_done.as_mut().is_some_and(|on_done| !on_done(&kernels[i])) {
            *on_done = None;
        }
    });
    let is_finished = lock().is_some();
    let made = cubins.into_iter().flatten().collect::<Result<Vec<_>>>()?;
    Ok(is_finished.then_some(made))
}

/// The machine code of a kernel, not if it is slow.
fn good_cubin(compiler: &Compiler, kernel: &ArchivedKernel) -> Result<Vec<u8>> {
    if let Some(cubin) = compiler.prebuilt(&kernel.source, kernel.arch)? {
        return Ok(cubin);
    }
    let (cubin, resources) = compiler.compile(&kernel.source, kernel.arch)?;
    if resources.warnings.is_empty() {
        return Ok(cubin);
    }
    Err(JitError::SlowCode {
        name: kernel.source.name.clone(),
        arch: kernel.arch.to_string(),
        warnings: resources.warnings.join("; "),
        needed: Nvrtc::RECOMMENDED,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::jit::cache::Cache;

    #[test]
    fn selections() {
        for arch in Arch::ALL {
            let all = kernels(arch, &Selection::default());
            let keys: HashSet<_> = all.iter().map(|k| &k.key).collect();
            assert_eq!(keys.len(), all.len(), "{arch}: a kernel twice");
            let names: HashSet<_> = all.iter().map(|k| &k.source.name).collect();
            assert_eq!(names.len(), all.len(), "{arch}: a name twice");
            for types in GemmTypes::all() {
                for instance in instances(types, arch) {
                    assert!(names.contains(&instance.source().name), "{arch}: {instance:?}");
                }
            }
        }
        let few = Selection {
            weights: vec![WeightKind::Channel4],
            activations: vec![DType::I8],
            outputs: vec![DType::F16],
            tokens: vec![8],
        };
        let found = kernels(Arch::Sm80, &few);
        assert_eq!(found.len(), 1);
        assert!(found[0].source.name.starts_with("sm80_gemm_c4_8x"), "{found:?}");
        assert_eq!(kernels(Arch::Sm90a, &few).len(), 6);
    }

    #[test]
    fn what_is_there_is_not_compiled() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::in_folder(folder.path());
        let selection = Selection { tokens: vec![8], ..Selection::default() };
        let kernels = kernels(Arch::Sm86, &selection);
        for kernel in &kernels {
            cache.put(&kernel.key, kernel.source.name.as_bytes());
        }
        let compiler = Compiler::new(cache);
        let mut done = HashSet::new();
        let cubins = compile_all(&compiler, &kernels, &mut |k| done.insert(k.key.clone())).unwrap().unwrap();
        assert_eq!(done.len(), kernels.len());
        for (kernel, cubin) in kernels.iter().zip(cubins) {
            assert_eq!(cubin, kernel.source.name.as_bytes());
        }
        let mut told = 0;
        let stopped = compile_all(&compiler, &kernels, &mut |_| {
            told += 1;
            told < 2
        });
        assert_eq!(stopped.unwrap(), None);
        assert_eq!(told, 2);
    }

    /// Run where a release is built: an archive may be embedded that lacks kernels.
    #[cfg(feature = "prebuilt-kernels")]
    #[test]
    fn embedded_kernels_are_complete_for_their_architectures() {
        let archive = crate::jit::embedded().unwrap();
        let index = archive.index().unwrap();
        for arch in Arch::ALL.into_iter().filter(|a| index.iter().any(|k| k.arch == *a)) {
            for kernel in kernels(arch, &Selection::default()) {
                assert!(
                    archive.get(&kernel.key, arch).unwrap().is_some(),
                    "{} for {arch}",
                    kernel.source.name
                );
            }
        }
    }
}
