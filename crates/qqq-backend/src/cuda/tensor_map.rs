//! Tensor maps: how the copy engine of a Hopper GPU cuts a matrix into boxes.

use std::ffi::c_void;

use cudarc::driver::sys;

use super::{CudaError, Result};

/// Type of the elements of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    Int8,
    Float16,
    Bfloat16,
}

impl Element {
    fn bytes(self) -> usize {
        if self == Element::Int8 { 1 } else { 2 }
    }

    fn driver_type(self) -> sys::CUtensorMapDataType {
        match self {
            Element::Int8 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            Element::Float16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            Element::Bfloat16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        }
    }
}

/// 128 bytes that the driver encodes and the kernel takes as a parameter.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct TensorMap([u64; 16]);

impl TensorMap {
    /// A row-major matrix of `(rows, columns)` at `address`, in boxes of `(rows, columns)` whose rows are 128 bytes,
    /// 128-byte swizzle. Elements outside read as zero and are not written.
    pub(crate) fn matrix(
        address: u64,
        element: Element,
        (rows, columns): (usize, usize),
        (box_rows, box_columns): (usize, usize),
    ) -> Result<Self> {
        // 64-byte alignment is what the driver asks of the descriptor; its own type has more.
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        let stride = columns * element.bytes();
        // SAFETY: all pointers are to arrays of the lengths that two dimensions need.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                element.driver_type(),
                2,
                address as *mut c_void,
                [columns as u64, rows as u64].as_ptr(),
                [stride as u64].as_ptr(),
                [box_columns as u32, box_rows as u32].as_ptr(),
                [1u32, 1].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        result.result().map_err(|source| CudaError::Driver {
            what: format!(
                "describing a {rows} x {columns} matrix at {address:#x} (its address and rows must be multiples of 16 bytes)"
            ),
            source,
        })?;
        Ok(Self(map.opaque))
    }
}
