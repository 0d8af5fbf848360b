//! What a compiled kernel takes, read from the compiler's log.

/// Registers and spills of a kernel, and what the compiler complained about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of registers stored to local memory.
    pub spill_stores: u32,
    /// Bytes of registers loaded from local memory.
    pub spill_loads: u32,
    /// Lines with warnings. Hopper's matrix instructions being serialized is one: such a kernel is right, and slow.
    pub warnings: Vec<String>,
}

impl Resources {
    /// Reads the log of a compilation with `--ptxas-options=-v`; the largest numbers of all its kernels.
    pub fn from_log(log: &str) -> Self {
        let mut r = Self::default();
        for line in log.lines() {
            // "... 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", "Used 168 registers, ..."
            let before = |what: &str| -> u32 {
                line.find(what)
                    .and_then(|at| line[..at].split_whitespace().last())
                    .and_then(|n| n.parse().ok())
                    .unwrap_or(0)
            };
            r.registers = r.registers.max(before(" registers"));
            r.spill_stores = r.spill_stores.max(before(" bytes spill stores"));
            r.spill_loads = r.spill_loads.max(before(" bytes spill loads"));
            let lower = line.to_lowercase();
            if lower.contains("warning") || lower.contains("serialized") || lower.contains("performance loss")
            {
                r.warnings.push(line.trim().to_owned());
            }
        }
        r
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_warnings() {
        let log = "ptxas info    : Compiling entry function 'gemm' for 'sm_90a'\n\
                   ptxas         .     32 bytes stack frame, 72 bytes spill stores, 68 bytes spill loads\n\
                   ptxas info    : Used 168 registers, used 16 barriers, 32 bytes cumulative stack size\n\
                   ptxas info    : (C7519) Potential Performance Loss: wgmma.mma_async instructions are serialized due to";
        let r = Resources::from_log(log);
        assert_eq!((r.registers, r.spill_stores, r.spill_loads), (168, 72, 68));
        assert_eq!(r.warnings.len(), 1);
        assert_eq!(Resources::from_log("ptxas info    : Used 40 registers").warnings, Vec::<String>::new());
    }
}
