//! Device memory of tensors, inputs and parameters.

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::CudaBackend;
use crate::error::driver;
use crate::{DType, Device, KernelType, Result};

/// How often memory was allocated, on whatever device: what was recorded before an allocation may mean memory that is gone.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// How often memory was allocated until now.
pub(super) fn allocations() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// Bytes on a device, which grow when more are needed.
#[derive(Debug)]
pub(super) struct Buffer {
    stream: Arc<CudaStream>,
    bytes: Option<CudaSlice<u8>>,
}

impl Buffer {
    pub(super) fn new(device: &Device, bytes: usize) -> Result<Self> {
        let mut buffer = Self { stream: device.stream().clone(), bytes: None };
        buffer.reserve(bytes)?;
        Ok(buffer)
    }

    /// With values of the host.
    pub(super) fn of<T: bytemuck::NoUninit>(device: &Device, values: &[T]) -> Result<Self> {
        let mut buffer = Self::new(device, size_of_val(values))?;
        buffer.write(bytemuck::cast_slice(values))?;
        Ok(buffer)
    }

    /// Room for as many bytes; what was there is lost if there was not.
    pub(super) fn reserve(&mut self, bytes: usize) -> Result<()> {
        if bytes > self.len() {
            // Given back first: both may not fit. Work under way is done before, for memory is freed in the stream's order.
            self.bytes = None;
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
            // SAFETY: what is read was written before by a kernel or a copy.
            let fresh = unsafe { self.stream.alloc::<u8>(bytes) };
            self.bytes = Some(fresh.map_err(driver(&format!("allocating {bytes} bytes on the GPU")))?);
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.as_ref().map_or(0, CudaSlice::len)
    }

    /// Address of the first byte; 0 if there is none.
    pub(super) fn address(&self) -> u64 {
        self.bytes.as_ref().map_or(0, |b| b.device_ptr(&self.stream).0)
    }

    /// Copies values from the host to the beginning.
    pub(super) fn write(&mut self, values: &[u8]) -> Result<()> {
        self.reserve(values.len())?;
        match &mut self.bytes {
            Some(bytes) if !values.is_empty() => {
                self.stream.memcpy_htod(values, bytes).map_err(driver("copying to the GPU"))
            }
            _ => Ok(()),
        }
    }

    /// Waits, and copies the first bytes to the host.
    pub(super) fn read(&self, bytes: usize) -> Result<Vec<u8>> {
        let Some(own) = self.bytes.as_ref().filter(|_| bytes > 0) else { return Ok(Vec::new()) };
        self.stream.clone_dtoh(&own.slice(..bytes)).map_err(driver("copying from the GPU"))
    }
}

/// Activations on a device, shape `rows x cols`, row-major.
#[derive(Debug)]
pub struct CudaTensor {
    pub(super) buffer: Buffer,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// F32, or the backend's 16-bit type.
    pub(super) dtype: DType,
}

impl CudaTensor {
    pub(super) fn reshape(&mut self, rows: usize, cols: usize, dtype: DType) -> Result<()> {
        (self.rows, self.cols, self.dtype) = (rows, cols, dtype);
        self.buffer.reserve(rows * cols * dtype.bytes())
    }

    pub(super) fn address(&self) -> u64 {
        self.buffer.address()
    }

    pub(super) fn read(&self) -> Result<Vec<f32>> {
        read_values(&self.buffer, self.rows * self.cols, self.dtype)
    }
}

/// What the input of a linear layer is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Elements {
    Half,
    Int8,
}

/// The input of linear layers on a device: rows of the backend's 16-bit type, or int8 rows with per-token scales.
#[derive(Debug)]
pub struct CudaInput {
    pub(super) buffer: Buffer,
    pub(super) scales: Buffer,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) elements: Elements,
    pub(super) half: DType,
}

impl CudaInput {
    pub(super) fn new(device: &Device, half: DType, rows: usize, cols: usize) -> Result<Self> {
        Ok(Self {
            buffer: Buffer::new(device, rows * cols * half.bytes())?,
            scales: Buffer::new(device, rows * 4)?,
            rows: 0,
            cols,
            elements: Elements::Half,
            half,
        })
    }

    pub(super) fn reshape(&mut self, rows: usize, cols: usize, elements: Elements) -> Result<()> {
        (self.rows, self.cols, self.elements) = (rows, cols, elements);
        let bytes = if elements == Elements::Int8 { 1 } else { self.half.bytes() };
        self.buffer.reserve(rows * cols * bytes)?;
        self.scales.reserve(rows * 4)
    }

    pub(super) fn read(&self) -> Result<Vec<f32>> {
        let count = self.rows * self.cols;
        if self.elements == Elements::Half {
            return read_values(&self.buffer, count, self.half);
        }
        let codes = self.buffer.read(count)?;
        let scales = read_values(&self.scales, self.rows, DType::F32)?;
        let cols = self.cols.max(1);
        Ok(codes.iter().enumerate().map(|(i, q)| f32::from(*q as i8) * scales[i / cols]).collect())
    }
}

/// Waits, and gives elements of a float type.
pub(super) fn read_values(buffer: &Buffer, count: usize, dtype: DType) -> Result<Vec<f32>> {
    let bytes = buffer.read(count * dtype.bytes())?;
    Ok(match dtype {
        DType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        half => bytes.chunks_exact(2).map(|b| half.decode(u16::from_le_bytes([b[0], b[1]]))).collect(),
    })
}

/// Waits, and gives the first float64 of a buffer.
pub(super) fn doubles(buffer: &Buffer, count: usize) -> Result<Vec<f64>> {
    Ok(bytemuck::pod_collect_to_vec(&buffer.read(8 * count)?))
}

/// float32 parameters on a device.
#[derive(Debug)]
pub struct CudaVector {
    pub(super) buffer: Buffer,
    pub(super) len: usize,
}

impl CudaVector {
    pub(super) fn new(device: &Device, values: &[f32]) -> Result<Self> {
        Ok(Self { buffer: Buffer::of(device, values)?, len: values.len() })
    }

    pub(super) fn address(&self) -> u64 {
        self.buffer.address()
    }
}

/// Copies bytes on the device, in the stream's order.
pub(super) fn copy(b: &CudaBackend, from: u64, to: u64, bytes: usize) -> Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    let stream = b.device().stream();
    let failed = || driver("copying on the GPU");
    stream.context().bind_to_thread().map_err(failed())?;
    // SAFETY: the callers give memory of these sizes.
    unsafe { cudarc::driver::result::memcpy_dtod_async(to, from, bytes, stream.cu_stream()) }
        .map_err(failed())
}
