//! A GPU: context, memory, streams, and the kernels loaded on it.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaStream, result, sys};

use crate::error::{CudaError, Result, driver};
use crate::jit::{Arch, Compiler, Source};

/// A GPU of this machine.
#[derive(Debug)]
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    name: String,
    capability: (u32, u32),
    sms: usize,
    compiler: Compiler,
    kernels: Mutex<HashMap<String, Arc<Kernel>>>,
}

impl Device {
    /// Opens GPU number `ordinal`.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`] on a machine without NVIDIA's driver; [`CudaError::Driver`] when there is no such GPU.
    pub fn new(ordinal: usize) -> Result<Arc<Self>> {
        // SAFETY: this only tries to open the library.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        let context = CudaContext::new(ordinal).map_err(driver("opening the GPU"))?;
        // SAFETY: every use of memory on another stream than the device's own follows a synchronization.
        unsafe { context.disable_event_tracking() };
        let attribute = |a| context.attribute(a).map_err(driver("reading the GPU's properties"));
        let capability = (
            attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        );
        let sms = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let name = context.name().map_err(driver("reading the GPU's name"))?;
        let stream = context.new_stream().map_err(driver("creating a stream"))?;
        Ok(Arc::new(Self {
            context,
            stream,
            name,
            capability,
            sms,
            compiler: Compiler::default(),
            kernels: Mutex::default(),
        }))
    }

    /// The GPU's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Compute capability, major and minor: `(9, 0)` for Hopper.
    pub fn capability(&self) -> (u32, u32) {
        self.capability
    }

    /// Number of SMs.
    pub fn sms(&self) -> usize {
        self.sms
    }

    /// Bytes of its memory: free ones, and all.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context.mem_get_info().map_err(driver("asking for the GPU's free memory"))
    }

    /// Bytes of its memory that can be allocated: free ones, and those that were [kept](Self::keep_freed_memory).
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn available_memory(&self) -> Result<usize> {
        let pool = self.memory_pool()?;
        let read = |attribute| {
            let mut bytes = 0u64;
            // SAFETY: the attribute is a number of 64 bits, which is written before the call returns.
            unsafe { sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()) }
                .result()
                .map_err(driver("asking for the GPU's memory"))
                .map(|()| bytes as usize)
        };
        let reserved = read(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
        let used = read(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        Ok(self.memory()?.0 + reserved.saturating_sub(used))
    }

    /// Keeps memory that is freed for what is allocated next, instead of giving it back to the driver whenever the host waits.
    /// Other programs do not get it meanwhile.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn keep_freed_memory(&self) -> Result<()> {
        let mut all = u64::MAX;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the attribute is a number of 64 bits, which is read before the call returns.
        unsafe { sys::cuMemPoolSetAttribute(self.memory_pool()?, attribute, (&raw mut all).cast()) }
            .result()
            .map_err(driver("setting up the GPU's memory"))
    }

    /// What memory comes from.
    fn memory_pool(&self) -> Result<sys::CUmemoryPool> {
        // SAFETY: the context's device exists.
        unsafe { result::device::get_default_mem_pool(self.context.cu_device()) }
            .map_err(driver("setting up the GPU's memory"))
    }

    /// The architecture that kernels are compiled for.
    ///
    /// # Errors
    /// [`CudaError::Device`] when there are no kernels for this GPU.
    pub fn arch(&self) -> Result<Arch> {
        let (major, minor) = self.capability;
        Arch::for_capability(major, minor).ok_or_else(|| {
            CudaError::Device(format!(
                "{} has compute capability {major}.{minor}: kernels exist for 8.0 and newer; use the CPU backend",
                self.name
            ))
        })
    }

    /// The driver's primary context of this GPU, which streams and memory belong to.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// The device's own stream; memory of its buffers belongs to it.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// The function `function` of `source`, compiled (or from the cache) and loaded once.
    ///
    /// # Errors
    /// See [`CudaError`].
    pub fn kernel(&self, source: &Source, shared_bytes: usize) -> Result<Arc<Kernel>> {
        let lock = || self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = lock().get(&source.name) {
            return Ok(kernel.clone());
        }
        // Not under the lock: other kernels may be compiled meanwhile. At worst one is loaded twice.
        let cubin = self.compiler.cubin(source, self.arch()?)?;
        let kernel = Arc::new(Kernel::load(&self.context, source, &cubin, shared_bytes)?);
        lock().insert(source.name.clone(), kernel.clone());
        Ok(kernel)
    }
}

/// A loaded kernel.
#[derive(Debug)]
pub struct Kernel {
    name: String,
    context: Arc<CudaContext>,
    module: sys::CUmodule,
    function: sys::CUfunction,
}

// SAFETY: the driver's handles may be used from any thread; `launch` binds the context first.
unsafe impl Send for Kernel {}
// SAFETY: as above; nothing here is changed after loading.
unsafe impl Sync for Kernel {}

impl Kernel {
    fn load(context: &Arc<CudaContext>, source: &Source, cubin: &[u8], shared_bytes: usize) -> Result<Self> {
        let name = &source.name;
        let failed = |source| CudaError::Driver { what: format!("loading the kernel {name}"), source };
        context.bind_to_thread().map_err(failed)?;
        // SAFETY: a cubin is an ELF image that states its own length.
        let module = unsafe { result::module::load_data(cubin.as_ptr().cast()) }.map_err(failed)?;
        let kernel = |function| Self { name: name.clone(), context: context.clone(), module, function };
        // From here on dropping `kernel` unloads the module.
        let mut kernel = kernel(std::ptr::null_mut());
        let function = CString::new(source.function()).expect("names of kernels have no NUL");
        // SAFETY: the module was loaded above.
        kernel.function = unsafe { result::module::get_function(module, function) }.map_err(failed)?;
        // SAFETY: the function was loaded above.
        unsafe {
            result::function::set_function_attribute(
                kernel.function,
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                shared_bytes as i32,
            )
        }
        .map_err(failed)?;
        Ok(kernel)
    }

    /// Clusters of `ctas` CTAs that the device can run at once.
    pub(crate) fn max_active_clusters(
        &self,
        threads: usize,
        shared_bytes: usize,
        ctas: usize,
    ) -> Result<usize> {
        let failed = |source| CudaError::Driver { what: format!("sizing the kernel {}", self.name), source };
        // The thread that loaded the kernel may have been another one.
        self.context.bind_to_thread().map_err(failed)?;
        let mut attributes = [cluster_attribute(ctas)];
        let config = launch_config(std::ptr::null_mut(), (ctas, threads, shared_bytes), &mut attributes);
        let mut clusters = 0;
        // SAFETY: all pointers are to live values; the function belongs to a loaded module.
        unsafe { sys::cuOccupancyMaxActiveClusters(&raw mut clusters, self.function, &raw const config) }
            .result()
            .map_err(failed)?;
        Ok(clusters as usize)
    }

    /// Launches `(ctas, threads, shared bytes)` in clusters of `cluster` CTAs. With `overlap`, it may
    /// begin while the launch before it on the stream still runs (programmatic dependent launch).
    ///
    /// # Safety
    /// The parameters must be those of the kernel, and what they point to on the device valid until it has run.
    pub(crate) unsafe fn launch(
        &self,
        stream: sys::CUstream,
        shape: (usize, usize, usize),
        cluster: usize,
        overlap: bool,
        parameters: &mut [*mut c_void],
    ) -> Result<()> {
        let failed =
            |source| CudaError::Driver { what: format!("launching the kernel {}", self.name), source };
        self.context.bind_to_thread().map_err(failed)?;
        let mut attributes = [cluster_attribute(cluster), overlap_attribute()];
        let attributes = match (cluster > 1, overlap) {
            (true, true) => &mut attributes[..],
            (true, false) => &mut attributes[..1],
            (false, true) => &mut attributes[1..],
            (false, false) => &mut attributes[..0],
        };
        let config = launch_config(stream, shape, attributes);
        // SAFETY: the configuration and parameters outlive the call; the rest is the caller's promise.
        unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                self.function,
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .map_err(failed)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: loaded by `load` and used by nobody else; launches keep the kernel alive.
            if let Err(error) = unsafe { result::module::unload(self.module) } {
                tracing::warn!("unloading the kernel {}: {error}", self.name);
            }
        }
    }
}

fn cluster_attribute(ctas: usize) -> sys::CUlaunchAttribute {
    let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
    value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: ctas as u32, y: 1, z: 1 };
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value,
    }
}

fn overlap_attribute() -> sys::CUlaunchAttribute {
    let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
    value.programmaticStreamSerializationAllowed = 1;
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value,
    }
}

fn launch_config(
    stream: sys::CUstream,
    (ctas, threads, shared_bytes): (usize, usize, usize),
    attributes: &mut [sys::CUlaunchAttribute],
) -> sys::CUlaunchConfig {
    sys::CUlaunchConfig {
        gridDimX: ctas as u32,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: threads as u32,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: shared_bytes as u32,
        hStream: stream,
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    }
}
