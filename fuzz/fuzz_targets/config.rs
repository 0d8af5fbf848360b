#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Refused or accepted: both are well.
    let _ = qqq_fuzz_targets::config(bytes);
});
