//! GGUF files in memory, well-formed or not.

/// A metadata value to be written.
#[derive(Clone, Debug)]
pub enum Kv {
    U32(u32),
    F32(f32),
    Bool(bool),
    Str(String),
    Ints(Vec<i32>),
    Strs(Vec<String>),
}

/// A tensor to be written: name, dimensions in GGUF's order, type number, bytes.
pub struct Tensor {
    pub name: String,
    pub dims: Vec<u64>,
    pub ty: u32,
    pub bytes: Vec<u8>,
}

/// Parts of a file, written in order by [`Builder::build`].
#[derive(Default)]
pub struct Builder {
    pub kvs: Vec<(String, Kv)>,
    pub tensors: Vec<Tensor>,
}

fn string(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

impl Builder {
    pub fn kv(mut self, key: &str, value: Kv) -> Self {
        self.kvs.push((key.into(), value));
        self
    }

    pub fn tensor(mut self, name: &str, dims: &[u64], ty: u32, bytes: Vec<u8>) -> Self {
        self.tensors.push(Tensor { name: name.into(), dims: dims.into(), ty, bytes });
        self
    }

    /// An F32 tensor counting up from zero.
    pub fn counting(self, name: &str, dims: &[u64]) -> Self {
        let n = dims.iter().product::<u64>();
        let bytes = (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect();
        self.tensor(name, dims, 0, bytes)
    }

    /// Replaces or adds a value.
    pub fn set(mut self, key: &str, value: Kv) -> Self {
        self.kvs.retain(|(k, _)| k != key);
        self.kv(key, value)
    }

    pub fn build(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.kvs.len() as u64).to_le_bytes());
        for (key, value) in &self.kvs {
            string(&mut out, key);
            match value {
                Kv::U32(x) => out.extend([&4u32.to_le_bytes()[..], &x.to_le_bytes()].concat()),
                Kv::F32(x) => out.extend([&6u32.to_le_bytes()[..], &x.to_le_bytes()].concat()),
                Kv::Bool(x) => out.extend([&7u32.to_le_bytes()[..], &[u8::from(*x)]].concat()),
                Kv::Str(s) => {
                    out.extend(8u32.to_le_bytes());
                    string(&mut out, s);
                }
                Kv::Ints(v) => {
                    out.extend([9u32.to_le_bytes(), 5u32.to_le_bytes()].concat());
                    out.extend((v.len() as u64).to_le_bytes());
                    v.iter().for_each(|x| out.extend(x.to_le_bytes()));
                }
                Kv::Strs(v) => {
                    out.extend([9u32.to_le_bytes(), 8u32.to_le_bytes()].concat());
                    out.extend((v.len() as u64).to_le_bytes());
                    v.iter().for_each(|s| string(&mut out, s));
                }
            }
        }
        let mut offset = 0u64;
        for t in &self.tensors {
            string(&mut out, &t.name);
            out.extend((t.dims.len() as u32).to_le_bytes());
            t.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(t.ty.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += (t.bytes.len() as u64).next_multiple_of(32);
        }
        for t in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&t.bytes);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out
    }
}

/// A one-block model of an architecture: 2 query heads and 1 key/value head of width 4, hidden size
/// 8, all tensors counting up from zero.
pub fn tiny(arch: &str) -> Builder {
    let key = |name: &str| format!("{arch}.{name}");
    let mut b = Builder::default()
        .kv("general.architecture", Kv::Str(arch.into()))
        .kv(&key("block_count"), Kv::U32(1))
        .kv(&key("context_length"), Kv::U32(64))
        .kv(&key("embedding_length"), Kv::U32(8))
        .kv(&key("feed_forward_length"), Kv::U32(16))
        .kv(&key("attention.head_count"), Kv::U32(2))
        .kv(&key("attention.head_count_kv"), Kv::U32(1))
        .kv(&key("attention.layer_norm_rms_epsilon"), Kv::F32(1e-5))
        .kv(&key("rope.freq_base"), Kv::F32(500_000.0))
        .kv("tokenizer.ggml.bos_token_id", Kv::U32(1))
        .kv("tokenizer.ggml.eos_token_id", Kv::U32(2))
        .counting("token_embd.weight", &[8, 10])
        .counting("output_norm.weight", &[8]);
    for (name, dims) in [
        ("attn_norm", &[8][..]),
        ("attn_q", &[8, 8]),
        ("attn_k", &[8, 4]),
        ("attn_v", &[8, 4]),
        ("attn_output", &[8, 8]),
        ("ffn_norm", &[8]),
        ("ffn_gate", &[8, 16]),
        ("ffn_up", &[8, 16]),
        ("ffn_down", &[16, 8]),
    ] {
        b = b.counting(&format!("blk.0.{name}.weight"), dims);
    }
    b
}
