//! Device memory of an emulated launch: operands with guards around them.

use std::cell::UnsafeCell;

/// What lies between operands: never written.
const GUARD: u8 = 0xA5;
const GUARD_BYTES: usize = 1024;
const ALIGNMENT: usize = 256;

/// `Region` of `machine.h`: an operand.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Region {
    pub address: u64,
    pub bytes: u64,
}

/// Operands, which kernels read and write by their addresses.
#[derive(Default)]
pub struct Memory {
    operands: Vec<Operand>,
}

struct Operand {
    // Kernels write here: nothing may be assumed of the bytes while one runs.
    storage: Box<[UnsafeCell<u8>]>,
    first: usize,
    bytes: usize,
}

impl Operand {
    fn address(&self) -> *mut u8 {
        self.storage[self.first].get()
    }

    /// A copy of bytes of the storage.
    fn copy(&self, from: usize, bytes: usize) -> Vec<u8> {
        // SAFETY: the range is checked by the slice; no kernel runs, for `launch` has returned.
        self.storage[from..from + bytes].iter().map(|b| unsafe { *b.get() }).collect()
    }
}

impl Memory {
    /// A copy of values; the address is a multiple of 256.
    pub fn upload<T: bytemuck::NoUninit>(&mut self, values: &[T]) -> Region {
        let values: &[u8] = bytemuck::cast_slice(values);
        let mut storage: Vec<_> = std::iter::repeat_with(|| UnsafeCell::new(GUARD))
            .take(values.len() + ALIGNMENT + 2 * GUARD_BYTES)
            .collect();
        let first = GUARD_BYTES + (storage.as_ptr() as usize + GUARD_BYTES).wrapping_neg() % ALIGNMENT;
        for (to, from) in storage[first..].iter_mut().zip(values) {
            *to.get_mut() = *from;
        }
        let operand = Operand { storage: storage.into(), first, bytes: values.len() };
        let region = Region { address: operand.address() as u64, bytes: values.len() as u64 };
        self.operands.push(operand);
        region
    }

    /// Replaces what an operand holds.
    pub fn fill<T: bytemuck::NoUninit>(&self, region: Region, values: &[T]) {
        let values: &[u8] = bytemuck::cast_slice(values);
        assert_eq!(values.len() as u64, region.bytes);
        for (to, from) in self.operand(region).storage[self.operand(region).first..].iter().zip(values) {
            // SAFETY: no kernel runs, for `launch` has returned.
            unsafe { *to.get() = *from };
        }
    }

    /// What an operand holds.
    pub fn download<T: bytemuck::AnyBitPattern>(&self, region: Region) -> Vec<T> {
        let operand = self.operand(region);
        let bytes = operand.copy(operand.first, operand.bytes);
        bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }

    fn operand(&self, region: Region) -> &Operand {
        self.operands.iter().find(|o| o.address() as u64 == region.address).unwrap()
    }

    /// All operands.
    pub fn regions(&self) -> Vec<Region> {
        let region = |o: &Operand| Region { address: o.address() as u64, bytes: o.bytes as u64 };
        self.operands.iter().map(region).collect()
    }

    /// That nothing was written around the operands.
    ///
    /// # Errors
    /// Which operand's guard was.
    pub fn check_guards(&self) -> Result<(), String> {
        for (i, o) in self.operands.iter().enumerate() {
            let end = o.first + o.bytes;
            let guards = [o.copy(0, o.first), o.copy(end, o.storage.len() - end)].concat();
            if guards.iter().any(|b| *b != GUARD) {
                return Err(format!("memory around operand {i} was written"));
            }
        }
        Ok(())
    }
}
