//! Safetensors files: one file, or the shards that an index names. Tensors are read when they are asked for.

mod header;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    ops::Range,
    path::{Component, Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    FormatError, Inputs, Result, TensorInfo, TensorSource, WeightData, float,
    input::Content,
    json::UniqueEntries,
    source::{beyond, row_range},
};

/// File of an unsharded model.
pub const SINGLE_FILE: &str = "model.safetensors";
/// Index of a sharded model.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// The tensors of a safetensors file, or of the shards of a directory.
pub struct Safetensors {
    path: PathBuf,
    files: Vec<Content>,
    tensors: BTreeMap<String, Located>,
}

struct Located {
    file: usize,
    range: Range<usize>,
    info: TensorInfo,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: UniqueEntries<String>,
}

impl Safetensors {
    /// Opens a `.safetensors` file, or a directory: its `model.safetensors`, else the shards named in
    /// `model.safetensors.index.json`, else its only `*.safetensors`. Headers are read and checked, tensors are not.
    ///
    /// # Errors
    /// Missing files or shards; headers that lie about sizes, shapes or offsets; an index that leads out of
    /// the directory or names tensors that their shard does not hold.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, &Inputs::default())
    }

    /// As [`Safetensors::open`], by way of `inputs`, which watches the files.
    ///
    /// # Errors
    /// As [`Safetensors::open`].
    pub fn open_with(path: &Path, inputs: &Inputs) -> Result<Self> {
        let content = |file: &Path| Ok(Content::File(inputs.open(file)?));
        let whole = |file: &Path| Self::new(path.into(), vec![(file.into(), content(file)?, None)]);
        if !path.is_dir() {
            return whole(path);
        }
        let single = path.join(SINGLE_FILE);
        if single.exists() {
            return whole(&single);
        }
        let index = path.join(INDEX_FILE);
        if index.exists() {
            let text = inputs.read(&index)?;
            return Self::indexed(path, &index, &text, |shard| {
                let file = path.join(shard);
                if !file.exists() {
                    return Err(FormatError::Malformed {
                        path: index.clone(),
                        reason: format!(
                            "shard {shard:?} is missing from {}; fetch the model again",
                            path.display()
                        ),
                    });
                }
                content(&file)
            });
        }
        let mut found = files_with_extension(path, "safetensors")?;
        match (found.pop(), found.len()) {
            (Some(only), 0) => whole(&only),
            (None, _) => Err(FormatError::Malformed {
                path: path.into(),
                reason: "the directory holds no safetensors file".into(),
            }),
            (Some(_), n) => Err(FormatError::Malformed {
                path: path.into(),
                reason: format!(
                    "the directory holds {} safetensors files, but neither {SINGLE_FILE} nor {INDEX_FILE} says which \
                     belong to the model",
                    n + 1
                ),
            }),
        }
    }

    /// The tensors of several files; `name` stands for all of them in messages.
    ///
    /// # Errors
    /// As [`Safetensors::open`]; a tensor that two of them hold.
    pub fn open_shards(name: &Path, shards: &[&Path]) -> Result<Self> {
        let inputs = Inputs::default();
        let open = |file: &&Path| Ok(((*file).into(), Content::File(inputs.open(file)?), None));
        Self::new(name.into(), shards.iter().map(open).collect::<Result<_>>()?)
    }

    /// A file that already lies in memory; `name` stands for its path in messages.
    ///
    /// # Errors
    /// As [`Safetensors::open`].
    pub fn from_bytes(name: &Path, bytes: Vec<u8>) -> Result<Self> {
        Self::new(name.into(), vec![(name.into(), Content::Memory(bytes), None)])
    }

    /// Shards that already lie in memory, with the index that names them.
    ///
    /// # Errors
    /// As [`Safetensors::open`].
    pub fn from_shards(name: &Path, index: &[u8], shards: &BTreeMap<String, Vec<u8>>) -> Result<Self> {
        Self::indexed(name, &name.join(INDEX_FILE), index, |shard| {
            shards.get(shard).cloned().map(Content::Memory).ok_or_else(|| FormatError::Malformed {
                path: name.join(INDEX_FILE),
                reason: format!("shard {shard:?} is missing"),
            })
        })
    }

    fn indexed(
        path: &Path,
        index_path: &Path,
        index: &[u8],
        mut open: impl FnMut(&str) -> Result<Content>,
    ) -> Result<Self> {
        let malformed = |reason: String| FormatError::Malformed { path: index_path.into(), reason };
        let index: Index =
            serde_json::from_slice(index).map_err(|e| malformed(format!("not a valid index: {e}")))?;
        let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (tensor, shard) in index.weight_map.0 {
            shards.entry(shard).or_default().push(tensor);
        }
        if shards.is_empty() {
            return Err(malformed("the index names no tensors".into()));
        }
        let mut files = Vec::with_capacity(shards.len());
        for (shard, tensors) in shards {
            let inside = Path::new(&shard).components().all(|c| matches!(c, Component::Normal(_)));
            if shard.is_empty() || !inside {
                return Err(malformed(format!("shard path {shard:?} leads out of the model's directory")));
            }
            files.push((path.join(&shard), open(&shard)?, Some(tensors)));
        }
        Self::new(path.into(), files)
    }

    /// Reads the headers of `files`; where an index names the tensors of a file, only those are taken, and
    /// all of them must be there.
    fn new(path: PathBuf, files: Vec<(PathBuf, Content, Option<Vec<String>>)>) -> Result<Self> {
        let mut contents = Vec::with_capacity(files.len());
        let mut tensors = BTreeMap::new();
        for (number, (file, content, wanted)) in files.into_iter().enumerate() {
            let mut entries: BTreeMap<String, Located> = header::parse(&file, &content)?
                .into_iter()
                .map(|e| (e.name, Located { file: number, range: e.range, info: e.info }))
                .collect();
            match wanted {
                None => tensors.append(&mut entries),
                Some(names) => {
                    for name in names {
                        let Some(entry) = entries.remove(&name) else {
                            return Err(FormatError::Malformed {
                                path: file,
                                reason: format!(
                                    "{INDEX_FILE} says that tensor {name:?} is in this shard, but it is not"
                                ),
                            });
                        };
                        tensors.insert(name, entry);
                    }
                }
            }
            contents.push(content);
        }
        Ok(Self { path, files: contents, tensors })
    }

    fn located(&self, name: &str) -> Result<&Located> {
        self.tensors
            .get(name)
            .ok_or_else(|| FormatError::MissingTensor { location: self.location(), name: name.into() })
    }
}

impl TensorSource for Safetensors {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.tensors.get(name).map(|entry| entry.info.clone())
    }

    fn bytes_at(&self, name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>> {
        let entry = self.located(name)?;
        if range.start > range.end || range.end > entry.range.len() {
            return Err(beyond(&self.location(), name, &range));
        }
        self.files[entry.file].read(entry.range.start + range.start..entry.range.start + range.end)
    }

    fn read_into(&self, name: &str, offset: usize, out: &mut [u8]) -> Result<()> {
        let entry = self.located(name)?;
        let range = offset..offset.saturating_add(out.len());
        if range.end > entry.range.len() {
            return Err(beyond(&self.location(), name, &range));
        }
        self.files[entry.file].read_into(entry.range.start + offset, out)
    }

    fn float_rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<WeightData> {
        let entry = self.located(name)?;
        let location = self.location();
        if entry.info.shape != shape {
            return Err(FormatError::Shape {
                location,
                name: name.into(),
                found: entry.info.shape.clone(),
                expected: shape.into(),
            });
        }
        let range =
            row_range(shape, entry.range.len(), &rows).ok_or_else(|| beyond(&location, name, &rows))?;
        float::read(&location, name, entry.info.dtype, range.len(), |out| {
            self.read_into(name, range.start, out)
        })
    }

    fn location(&self) -> String {
        self.path.display().to_string()
    }
}

/// Files of a directory with an extension, sorted.
pub(crate) fn files_with_extension(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let io = |source| FormatError::Io { path: dir.into(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
