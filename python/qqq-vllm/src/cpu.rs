//! Products on the CPU.

use std::cell::RefCell;
use std::ffi::{c_int, c_uint, c_void};

use half::{bf16, f16};
use pyo3::prelude::*;
use qqq_backend::cpu::integer::{Int8Activations, IntegerLinear};
use qqq_backend::cpu::matrix::Matrix;
use qqq_backend::pool::parallel_chunks_mut;
use qqq_backend::team::{Team, set_team};

use crate::address::Span;
use crate::weight::Weight;
use crate::{runtime_error, value_error};

/// A prepacked weight.
#[pyclass(frozen, module = "qqq_vllm._native")]
pub struct CpuLinear(IntegerLinear);

/// A type of activations.
trait Element: bytemuck::AnyBitPattern + Send + Sync {
    fn widen(self) -> f32;
    fn narrow(value: f32) -> Self;
}

impl Element for f32 {
    fn widen(self) -> f32 {
        self
    }
    fn narrow(value: f32) -> Self {
        value
    }
}

impl Element for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
    fn narrow(value: f32) -> Self {
        f16::from_f32(value)
    }
}

impl Element for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }
    fn narrow(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

#[pymethods]
impl CpuLinear {
    /// Prepacks a weight for this machine's best instructions, or for those that QQQ_ISA names.
    #[new]
    fn new(py: Python<'_>, weight: PyRef<'_, Weight>) -> PyResult<Self> {
        let weight = &weight.0;
        py.detach(|| IntegerLinear::new(weight)).map(Self).map_err(value_error)
    }

    /// The name of the instructions.
    #[getter]
    fn isa(&self) -> String {
        self.0.isa().to_string()
    }

    /// `y = x W^T + bias`. `x` and `y`: rows of float32, float16 or bfloat16 values; `bias`: float32.
    fn forward(&self, py: Python<'_>, dtype: &str, x: Span, y: Span, bias: Option<Span>) -> PyResult<()> {
        // SAFETY: the Python side has checked the types, and y is a tensor that it has just made.
        unsafe {
            match dtype {
                "float32" => self.forward_as::<f32>(py, x.slice()?, y.slice_mut()?, bias),
                "float16" => self.forward_as::<f16>(py, x.slice()?, y.slice_mut()?, bias),
                "bfloat16" => self.forward_as::<bf16>(py, x.slice()?, y.slice_mut()?, bias),
                other => Err(value_error(format!("activations of type {other}"))),
            }
        }
    }
}

impl CpuLinear {
    fn forward_as<T: Element>(
        &self,
        py: Python<'_>,
        x: &[T],
        y: &mut [T],
        bias: Option<Span>,
    ) -> PyResult<()> {
        let (n, k) = (self.0.out_features(), self.0.in_features());
        let rows = x.len() / k;
        if x.len() != rows * k || y.len() != rows * n {
            return Err(value_error(format!(
                "{} inputs and {} outputs for a weight of {n} x {k}",
                x.len(),
                y.len()
            )));
        }
        // SAFETY: the Python side has checked the type.
        let bias = bias.map(|b| unsafe { b.slice::<f32>() }).transpose()?;
        if bias.is_some_and(|b| b.len() != n) {
            return Err(value_error(format!("a bias that has not {n} values")));
        }
        thread_local! {
            /// Activations and products of the last call, in whose memory the next ones are made.
            static BUFFERS: RefCell<(Int8Activations, Matrix)> = RefCell::default();
        }
        py.detach(|| {
            BUFFERS.with_borrow_mut(|(a, out)| {
                a.reshape(rows, k);
                a.fill(0..rows, |i, row| {
                    row.iter_mut().zip(&x[i * k..(i + 1) * k]).for_each(|(to, from)| *to = from.widen());
                });
                out.reshape(rows, n);
                self.0.matmul(a, bias, out);
                // Few rows are converted faster than they are handed over.
                let chunk = if rows * n <= 1 << 14 { y.len().max(1) } else { n };
                parallel_chunks_mut(y, chunk, |i, part| {
                    let values = &out.data[i * chunk..i * chunk + part.len()];
                    part.iter_mut().zip(values).for_each(|(to, from)| *to = T::narrow(*from));
                });
            });
        });
        Ok(())
    }
}

/// `void GOMP_parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags)`
type GompParallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

/// Work on the threads of an OpenMP runtime, PyTorch's, whose `GOMP_parallel` is at `address`.
#[pyfunction]
pub fn use_openmp(address: usize, threads: c_int) -> PyResult<()> {
    if address == 0 || threads < 1 {
        return Err(value_error("an OpenMP runtime has an address, and threads"));
    }
    // SAFETY: the Python side has looked the address up under the function's name.
    let parallel = unsafe { std::mem::transmute::<usize, GompParallel>(address) };
    let run_on_all = move |work: &(dyn Fn() + Sync)| {
        extern "C" fn call(data: *mut c_void) {
            // SAFETY: `data` is the reference below; it lives until GOMP_parallel returns. It catches its own panics.
            unsafe { (*data.cast::<&(dyn Fn() + Sync)>())() }
        }
        let mut data: &(dyn Fn() + Sync) = work;
        // SAFETY: calls `call` once on each thread and returns when all have.
        unsafe { parallel(call, (&raw mut data).cast(), threads as c_uint, 0) }
    };
    set_team(Team::new(threads as usize, Box::new(run_on_all))).map_err(runtime_error)
}
