//! Errors across the border.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use qqq_cuda::{CudaError, DType};

/// What a function returns: `qqq_status` of the header, with its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum Status {
    /// Done, or enqueued.
    Ok = 0,
    /// A null pointer, a value that no enumerator has, or types that no kernel takes together.
    Argument = 1,
    /// A shape, alignment or size that the kernels do not take.
    Shape = 2,
    /// No driver, no such GPU, or one without kernels.
    Device = 3,
    /// NVRTC is missing or failed.
    Compiler = 4,
    /// The driver refused something.
    Driver = 5,
    /// A defect of this library: a panic that was caught at the border.
    Internal = 6,
}

/// What a call reports.
pub(crate) struct Failure {
    status: Status,
    message: String,
}

impl From<CudaError> for Failure {
    fn from(error: CudaError) -> Self {
        let status = match &error {
            CudaError::NoDriver | CudaError::Device(_) => Status::Device,
            CudaError::Shape(_) => Status::Shape,
            CudaError::Types(_) => Status::Argument,
            CudaError::Driver { .. } => Status::Driver,
            CudaError::Jit(_) => Status::Compiler,
            _ => Status::Internal,
        };
        Self { status, message: error.to_string() }
    }
}

/// A mistake in the arguments.
pub(crate) fn argument(message: impl Into<String>) -> Failure {
    Failure { status: Status::Argument, message: message.into() }
}

/// A size that no kernel takes.
pub(crate) fn size(name: &str, value: i64) -> Result<usize, Failure> {
    usize::try_from(value)
        .map_err(|_| Failure { status: Status::Shape, message: format!("{name} is {value}") })
}

/// The value behind a pointer.
///
/// # Safety
/// The pointer must be null, or to a live value.
pub(crate) unsafe fn reference<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Failure> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_ref() }.ok_or_else(|| argument(format!("{name} is NULL")))
}

/// Makes a handle and gives it to the caller.
///
/// # Safety
/// `target` must be null, or to memory that holds a pointer.
pub(crate) unsafe fn give<T>(
    target: *mut *mut T,
    name: &str,
    make: impl FnOnce() -> Result<T, Failure>,
) -> Status {
    call(|| {
        // Before anything that takes long.
        if target.is_null() {
            return Err(argument(format!("{name} is NULL")));
        }
        let handle = Box::new(make()?);
        // SAFETY: the caller's promise.
        unsafe { target.write(Box::into_raw(handle)) };
        Ok(())
    })
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Runs a call's body; keeps what went wrong for [`qqq_last_error`].
pub(crate) fn call(body: impl FnOnce() -> Result<(), Failure>) -> Status {
    // Handles are read only: a panic leaves none of them half changed.
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return Status::Ok,
        Ok(Err(failure)) => failure,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
            Failure { status: Status::Internal, message: format!("a defect of qqq: {text}") }
        }
    };
    let message = failure.message.replace('\0', " ");
    LAST.set(CString::new(message).expect("zeros were replaced"));
    failure.status
}

/// See `qqq.h`.
#[unsafe(no_mangle)]
pub extern "C" fn qqq_last_error() -> *const c_char {
    LAST.with_borrow(|message| message.as_ptr())
}

/// See `qqq.h`.
#[unsafe(no_mangle)]
pub extern "C" fn qqq_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("a version has no zeros"),
        };
    VERSION.as_ptr()
}

/// An enumerator of `qqq.h`.
pub(crate) fn enumerator<T: Copy>(name: &str, value: c_int, values: &[T]) -> Result<T, Failure> {
    usize::try_from(value)
        .ok()
        .and_then(|i| values.get(i).copied())
        .ok_or_else(|| argument(format!("{name} is {value}: no such enumerator")))
}

/// A `qqq_type` of `qqq.h` that is one of those allowed here.
pub(crate) fn element(name: &str, value: c_int, allowed: &[DType]) -> Result<DType, Failure> {
    let dtype = enumerator(name, value, &[DType::F16, DType::BF16, DType::F32, DType::I8])?;
    if allowed.contains(&dtype) { Ok(dtype) } else { Err(argument(format!("{name} is {dtype}"))) }
}
