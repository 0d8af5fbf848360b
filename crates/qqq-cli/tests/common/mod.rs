//! Tiny checkpoints, and running the binary.
#![allow(dead_code)] // not every test file uses all of them

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use serde_json::{Map, Value, json};

/// Text of our own for calibration and scoring: one token a byte for the tiny model.
pub const TEXT: &str = include_str!("../../src/commands/demo/text.txt");

const HIDDEN: usize = 64;
const INNER: usize = 128;
const LAYERS: usize = 2;
const VOCAB: usize = 272;

/// A random Llama model with a byte-level tokenizer.
pub struct TinyModel {
    /// Content of config.json.
    pub config: Value,
    /// Content of tokenizer.json.
    pub tokenizer: Value,
    /// Name, shape, values.
    pub tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl TinyModel {
    pub fn new() -> Self {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
            "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": false,
            "bos_token_id": 256, "eos_token_id": 257, "torch_dtype": "float32",
        });
        let kv = HIDDEN / 2;
        let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN])];
        for i in 0..LAYERS {
            for (name, shape) in [
                ("input_layernorm", vec![HIDDEN]),
                ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
                ("self_attn.k_proj", vec![kv, HIDDEN]),
                ("self_attn.v_proj", vec![kv, HIDDEN]),
                ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
                ("post_attention_layernorm", vec![HIDDEN]),
                ("mlp.gate_proj", vec![INNER, HIDDEN]),
                ("mlp.up_proj", vec![INNER, HIDDEN]),
                ("mlp.down_proj", vec![HIDDEN, INNER]),
            ] {
                shapes.push((format!("model.layers.{i}.{name}.weight"), shape));
            }
        }
        shapes.push(("model.norm.weight".into(), vec![HIDDEN]));
        shapes.push(("lm_head.weight".into(), vec![VOCAB, HIDDEN]));
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let tensors = shapes
            .into_iter()
            .map(|(name, shape)| {
                let norm = shape.len() == 1;
                let n = shape.iter().product();
                let values =
                    (0..n).map(|_| if norm { 1.0 + 0.2 * random() } else { 0.2 * random() }).collect();
                (name, shape, values)
            })
            .collect();
        Self { config, tokenizer: tokenizer(), tensors }
    }

    /// Makes the model answer in these bytes alone, whatever it is asked (greedily). Of two one is always likelier than all
    /// other tokens; of many this holds in practice.
    pub fn that_says(mut self, bytes: &[u8]) -> Self {
        let (.., head) = self.tensors.iter_mut().find(|(name, ..)| name == "lm_head.weight").unwrap();
        for (id, row) in head.chunks_exact_mut(HIDDEN).enumerate() {
            if !bytes.iter().any(|b| usize::from(*b) == id) {
                row.fill(0.0);
            }
        }
        if let [a, b] = bytes {
            let opposite: Vec<f32> = head[usize::from(*a) * HIDDEN..][..HIDDEN].iter().map(|v| -v).collect();
            head[usize::from(*b) * HIDDEN..][..HIDDEN].copy_from_slice(&opposite);
        }
        self
    }

    /// With room for this many tokens.
    pub fn with_context(mut self, tokens: usize) -> Self {
        self.config["max_position_embeddings"] = json!(tokens);
        self
    }

    /// Writes a directory with one safetensors file.
    pub fn write(&self, dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        self.write_beside(dir);
        fs::write(dir.join("model.safetensors"), safetensors(&self.tensors)).unwrap();
    }

    /// Writes a directory with two shards.
    pub fn write_sharded(&self, dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        self.write_beside(dir);
        let mut map = Map::new();
        for (i, part) in self.tensors.chunks(self.tensors.len().div_ceil(2)).enumerate() {
            let file = format!("model-0000{}-of-00002.safetensors", i + 1);
            fs::write(dir.join(&file), safetensors(part)).unwrap();
            map.extend(part.iter().map(|(name, ..)| (name.clone(), json!(file))));
        }
        fs::write(dir.join("model.safetensors.index.json"), json!({ "weight_map": map }).to_string())
            .unwrap();
    }

    fn write_beside(&self, dir: &Path) {
        fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
        fs::write(dir.join("tokenizer.json"), self.tokenizer.to_string()).unwrap();
        let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
        let config = json!({ "bos_token": "<s>", "eos_token": "</s>", "chat_template": template });
        fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    }
}

/// Byte-level BPE without merges: 256 bytes and two special tokens.
fn tokenizer() -> Value {
    let mut vocab = Map::new();
    let mut extra = 256;
    for byte in 0..=255u32 {
        // GPT-2's printable stand-ins for bytes.
        let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let c = if printable {
            byte
        } else {
            extra += 1;
            extra - 1
        };
        vocab.insert(char::from_u32(c).unwrap().to_string(), json!(byte));
    }
    let special = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(256, "<s>"), special(257, "</s>")],
        "normalizer": null, "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab, "merges": []},
    })
}

fn safetensors(tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Vec<u8> {
    let mut header = Map::new();
    let mut data = Vec::new();
    for (name, shape, values) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        header.insert(
            name.clone(),
            json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    let header = Value::from(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend(data);
    file
}

/// A directory for a test, with a tiny model in `model` and text in `text.txt`.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        TinyModel::new().write(&place.path("model"));
        fs::write(place.path("text.txt"), TEXT).unwrap();
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Everything in the directory, hidden files too.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The binary, to be run in this directory.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qqq"));
        clean(&mut command);
        command.current_dir(self.dir.path());
        command
    }

    /// Runs a command line (split at spaces).
    pub fn run(&self, line: &str) -> Run {
        Run::of(self.command().args(line.split_whitespace()).output().unwrap())
    }

    /// Starts a command line (split at spaces), whose output is to be read.
    pub fn start(&self, line: &str) -> Child {
        let mut command = self.command();
        command.args(line.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// Starts a measurement and interrupts it when it has something.
    #[cfg(unix)]
    pub fn interrupted(&self, line: &str) -> Run {
        use std::io::{BufRead, BufReader, Read};
        let mut child = self
            .command()
            .env("QQQ_LOG", "qqq=debug")
            .args(line.split(' '))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains(" 1 of ") {
            assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "it has ended: {said}");
        }
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        stderr.read_to_string(&mut said).unwrap();
        let mut run = Run::of(child.wait_with_output().unwrap());
        run.stderr = said;
        run
    }

    /// Makes a W4A8 checkpoint of the tiny model.
    pub fn quantize(&self, out: &str, options: &str) {
        self.run(&format!(
            "quantize model -o {out} --calibration text.txt --windows 4 --window 128 {options}"
        ))
        .success();
    }
}

/// Takes away what the environment could change.
pub fn clean(command: &mut Command) {
    for name in [
        "HF_TOKEN",
        "QQQ_LOG",
        "QQQ_ISA",
        "QQQ_THREADS",
        "QQQ_HISTORY",
        "RUST_BACKTRACE",
        "RUST_LOG",
        "NO_COLOR",
        "CLICOLOR",
        "CLICOLOR_FORCE",
    ] {
        command.env_remove(name);
    }
    // No test may reach for the network.
    command.env("HF_HUB_OFFLINE", "1").env("COLUMNS", "100").stdin(Stdio::null());
}

/// What a run has left.
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    pub fn success(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// A failure as it should be: this exit code, one `error:` line that says `says`, no panic, no result.
    #[track_caller]
    pub fn failure(self, code: i32, says: &str) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        let errors: Vec<&str> = self.stderr.lines().filter(|l| l.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{}", self.stderr);
        assert!(errors[0].contains(says), "{:?} does not say {says:?}", errors[0]);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// The one JSON object on standard output.
    #[track_caller]
    pub fn json(&self) -> Value {
        let value: Value =
            serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {:?}", self.stdout));
        assert!(value.is_object());
        value
    }
}
