//! What machine code says about itself.

/// Type of the sections with the compiler's notes (`SHT_CUDA_INFO`).
const INFO_SECTION: u32 = 0x7000_0000;
/// The note with the registers of a function (`EIATTR_REGCOUNT`): symbol, number.
const REGISTERS_NOTE: u8 = 0x2f;
/// A note whose length follows; the others have two bytes of payload in the place of the length.
const SIZED_NOTE: u8 = 4;

/// Registers of a thread: the largest number of all functions in a cubin. `None` for what is no cubin.
pub fn registers(cubin: &[u8]) -> Option<u32> {
    if !cubin.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (number(cubin, 40, 8)?, number(cubin, 58, 2)?, number(cubin, 60, 2)?);
    let mut most = None;
    for i in 0..count {
        let header = cubin.get(usize::try_from(table.checked_add(i * size)?).ok()?..)?;
        if number(header, 4, 4)? != u64::from(INFO_SECTION) {
            continue;
        }
        let (start, length) = (number(header, 24, 8)? as usize, number(header, 32, 8)? as usize);
        let mut notes = cubin.get(start..start.checked_add(length)?)?;
        while notes.len() >= 4 {
            let payload = if notes[0] == SIZED_NOTE { number(notes, 2, 2)? as usize } else { 0 };
            if notes[..2] == [SIZED_NOTE, REGISTERS_NOTE] {
                most = most.max(Some(number(notes, 8, 4)? as u32));
            }
            notes = notes.get(4 + payload..)?;
        }
    }
    most
}

/// A little-endian number of `bytes` bytes.
fn number(data: &[u8], at: usize, bytes: usize) -> Option<u64> {
    let field = data.get(at..at.checked_add(bytes)?)?;
    Some(field.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with one section of notes.
    fn cubin(notes: &[u8]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.resize(64, 0);
        file[40..48].copy_from_slice(&64u64.to_le_bytes());
        file[58..60].copy_from_slice(&64u16.to_le_bytes());
        file[60..62].copy_from_slice(&1u16.to_le_bytes());
        file.resize(128, 0);
        file[68..72].copy_from_slice(&INFO_SECTION.to_le_bytes());
        file[88..96].copy_from_slice(&128u64.to_le_bytes());
        file[96..104].copy_from_slice(&(notes.len() as u64).to_le_bytes());
        file.extend(notes);
        file
    }

    #[test]
    fn the_largest_function_counts() {
        let notes = [
            [3, 0x1b, 0xff, 0].as_slice(),
            &[4, 0x2f, 8, 0, 42, 0, 0, 0, 168, 0, 0, 0],
            &[4, 0x11, 8, 0, 42, 0, 0, 0, 255, 0, 0, 0],
            &[4, 0x2f, 8, 0, 43, 0, 0, 0, 40, 0, 0, 0],
        ];
        assert_eq!(registers(&cubin(&notes.concat())), Some(168));
        assert_eq!(registers(&cubin(&notes[0].repeat(2))), None);
    }

    #[test]
    fn damaged_files_are_none() {
        let whole = cubin(&[4, 0x2f, 8, 0, 42, 0, 0, 0, 168, 0, 0, 0]);
        assert_eq!(registers(&whole), Some(168));
        for length in 0..whole.len() {
            assert_eq!(registers(&whole[..length]), None, "{length}");
        }
        // Addresses and lengths beyond the file.
        for (at, bytes) in [(40, 2), (40, 8), (88, 2), (88, 8), (96, 2), (96, 8)] {
            let mut bad = whole.clone();
            bad[at..at + bytes].fill(0xff);
            assert_eq!(registers(&bad), None, "{at}, {bytes}");
        }
        assert_eq!(registers(b"fake"), None);
    }
}
