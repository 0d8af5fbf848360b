//! NVIDIA GPUs: matrix products of 4-bit or int8 weights, the kernels that make their operands, and the machine code of
//! all of them.
//!
//! - [`jit`] makes machine code of the CUDA C++ in `kernels/`, which is part of the binary: NVRTC compiles on first use
//!   or ahead of time, and what was compiled is kept.
//! - [`Device`] is a GPU with its loaded kernels. The driver is loaded at run time, so one binary serves machines with
//!   and without a GPU.
//! - [`gemm`] multiplies: prepacked weights, instances of the kernels, which of them runs a shape, and the launch.
//! - [`CudaBackend`] is a GPU as a [`Backend`](qqq_backend::Backend): a decoder's operations.
//! - [`quantize`] makes int8 activations, [`ceilings`] measures what a GPU gives at most, and [`prebuild`] lists every
//!   kernel.
//!
//! What it never does: link against CUDA, compile or allocate when a product is launched, or choose a kernel that gives
//! other numbers. Sums of int8 activations are exact, whichever kernel adds them.
//!
//! # Example
//! Weights are packed, and the kernel for them is chosen, on a machine without a GPU:
//!
//! ```
//! use qqq_cuda::gemm::{CostModel, GemmSpec, GemmTypes, PackedWeights};
//! use qqq_cuda::{Arch, DType};
//! use qqq_formats::{CodeBits, QuantizedWeight, Scales};
//!
//! let (n, k) = (1024, 512);
//! let codes = (0..n * k).map(|i| (i % 15) as i8 - 7).collect();
//! let scales = Scales::PerChannel(vec![0.01; n]);
//! let weight = QuantizedWeight { bits: CodeBits::Four, out_features: n, in_features: k, codes, scales };
//!
//! // Half a byte a weight, in the order in which the kernels read them.
//! let packed = PackedWeights::new(&weight)?;
//! assert_eq!(packed.weight_tiles.len(), n * k / 2);
//!
//! // The product of 16 tokens with int8 activations on an H100, which has 132 SMs.
//! let types = GemmTypes::int8(packed.kind, DType::BF16);
//! let plan = CostModel::new(132).plan(&GemmSpec::new(types, (n, k)), Arch::Sm90a, 16);
//! let kernel = plan.instance.source();
//! assert!(kernel.name.starts_with("sm90_gemm_c4_16x"));
//! // Under this key the cache and archives have its machine code.
//! assert_eq!(kernel.key(Arch::Sm90a).len(), 64);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod ceilings;
pub mod decoder;
pub mod device;
pub mod driver;
pub mod dtype;
pub mod error;
pub mod gemm;
pub mod jit;
pub mod prebuild;
pub mod quantize;
pub mod tensor_map;
pub mod timing;

pub use decoder::{Arithmetic, CudaBackend, CudaOptions};
pub use device::Device;
pub use dtype::KernelType;
pub use error::{CudaError, Result};
pub use jit::{Arch, Archive, Compiler, Nvrtc, Resources, Source, embedded};
pub use qqq_formats::DType;
