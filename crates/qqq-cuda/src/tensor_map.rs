//! Tensor maps: how the copy engine of a Hopper GPU cuts a matrix into boxes.

use crate::{DType, KernelType};
use std::ffi::c_void;

use cudarc::driver::sys;

use super::{CudaError, Result};

/// 128 bytes that the kernel takes as a parameter.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct TensorMap(pub [u64; 16]);

/// A row-major matrix in boxes whose rows are 128 bytes, 128-byte swizzle. Elements outside read as zero and are not
/// written.
#[derive(Clone, Copy, Debug)]
pub struct TiledMatrix {
    /// Where it lies on the device.
    pub address: u64,
    /// Type of its elements.
    pub element: DType,
    /// Rows and columns.
    pub shape: (usize, usize),
    /// Rows and columns of a box.
    pub tile: (usize, usize),
}

impl TiledMatrix {
    /// The tensor map as the driver encodes it.
    pub(crate) fn encode(&self) -> Result<TensorMap> {
        let Self { address, element, shape: (rows, columns), tile: (box_rows, box_columns) } = *self;
        // 64-byte alignment is what the driver asks of the descriptor; its own type has more.
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        let stride = columns * element.bytes();
        // SAFETY: all pointers are to arrays of the lengths that two dimensions need.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                driver_type(element),
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
        Ok(TensorMap(map.opaque))
    }
}

fn driver_type(element: DType) -> sys::CUtensorMapDataType {
    match element {
        DType::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        DType::BF16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        // Copied as they are.
        _ => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
    }
}
