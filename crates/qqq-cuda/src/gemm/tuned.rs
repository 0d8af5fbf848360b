//! Choices that were measured on a model of GPU, kept on disk (`qqq bench gemm --tune`).
//!
//! There is one JSON file for each model of GPU and revision of the kernels: what was measured for other kernels says
//! nothing about these. A choice holds for the numbers of tokens in the same [`bucket`] as the one that was measured.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{GemmTypes, Plan, SumOrder, WeightKind, candidates, instances};
use crate::jit::cache::Cache;
use crate::jit::source;
use crate::{Arch, CudaError, DType, Device, KernelType, Result};

/// What a file calls itself, with the version of the format.
const FORMAT: &str = "qqq-tuned-1";
/// The part of the time that a plan must save to be kept: below lies what two measurements differ by.
const MARGIN: f64 = 0.02;

/// Products that share a choice, except for their numbers of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TunedKey {
    /// The kernels: the device's own, or Ampere's.
    pub arch: Arch,
    /// What the operands are made of.
    pub types: GemmTypes,
    /// Output channels of the product that was measured.
    pub n: usize,
    /// Input channels of the product that was measured.
    pub k: usize,
}

/// What tuning found for a number of tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TunedChoice {
    /// The faster plan; `None` where the heuristic's stands.
    pub plan: Option<Plan>,
    /// Microseconds of the fastest plan.
    pub microseconds: f64,
    /// Microseconds of the heuristic's.
    pub heuristic_microseconds: f64,
}

/// Whether a plan is so much faster than the heuristic's that it is worth keeping.
pub fn is_worth_keeping(microseconds: f64, heuristic_microseconds: f64) -> bool {
    microseconds < heuristic_microseconds * (1.0 - MARGIN)
}

/// The numbers of tokens that share a choice with `m`, first and last: up to 8, 16 and 32, then up to powers of two and
/// the middles between them (48, 64, 96, 128, ...). These are the tiles' sizes, so within a bucket the same tiles come
/// into question, and the work differs by a third at most beyond 32 tokens.
pub fn bucket(m: usize) -> (usize, usize) {
    let power = m.next_power_of_two();
    match power {
        0..=8 => (1, 8),
        16 | 32 => (power / 2 + 1, power),
        _ if m <= power / 4 * 3 => (power / 2 + 1, power / 4 * 3),
        _ => (power / 4 * 3 + 1, power),
    }
}

/// The choices for a GPU, by product and number of tokens.
#[derive(Clone, Debug, Default)]
pub struct TunedPlans {
    plans: HashMap<TunedKey, BTreeMap<usize, Option<Plan>>>,
}

impl TunedPlans {
    /// The plan for `m` tokens: that of the next number of tokens in the bucket that was tuned, whose tiles have room for `m`,
    /// else of the last one below. `None` without one, and where that plan is no candidate for `m`.
    pub fn plan(&self, key: &TunedKey, m: usize) -> Option<Plan> {
        let (first, last) = bucket(m);
        let tuned = self.plans.get(key)?;
        let (_, plan) = tuned.range(m..=last).next().or_else(|| tuned.range(first..m).next_back())?;
        plan.filter(|p| {
            p.instance.tile().takes(key.k) && candidates(key.types, key.arch, m, SumOrder::Free).contains(p)
        })
    }

    /// Whether just this number of tokens was measured.
    pub fn is_known(&self, key: &TunedKey, m: usize) -> bool {
        self.plans.get(key).is_some_and(|tuned| tuned.contains_key(&m))
    }

    /// Adds what was found for `m` tokens; `None` where the heuristic's choice stands.
    pub(super) fn add(&mut self, key: &TunedKey, m: usize, plan: Option<Plan>) {
        self.plans.entry(*key).or_default().insert(m, plan);
    }
}

/// The file of a model of GPU.
#[derive(Clone, Debug)]
pub struct TunedStore {
    path: Option<PathBuf>,
    head: Head,
}

/// What a file is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    format: String,
    device: String,
    multiprocessors: usize,
    kernels: String,
}

#[derive(Serialize, Deserialize)]
struct Content {
    #[serde(flatten)]
    head: Head,
    /// [`Entry`] each; one that does not parse must not spoil the others.
    choices: Vec<Value>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    architecture: String,
    weights: String,
    activations: String,
    output: String,
    n: usize,
    k: usize,
    tokens: usize,
    /// Name of the instance, `None` for the heuristic's choice.
    kernel: Option<String>,
    split: bool,
    #[serde(default)]
    paired: bool,
    microseconds: f64,
    heuristic_microseconds: f64,
}

impl TunedStore {
    /// Of this model of GPU, in the user's cache of kernels.
    pub fn of_device(device: &Device) -> Self {
        Self::new(&Cache::of_user(), device.name(), device.sms())
    }

    /// In the folder of a cache, for the present kernels. Without a folder nothing is found and nothing can be kept.
    pub fn new(cache: &Cache, device: &str, multiprocessors: usize) -> Self {
        Self::for_revision(cache, device, multiprocessors, source::revision())
    }

    fn for_revision(cache: &Cache, device: &str, multiprocessors: usize, kernels: String) -> Self {
        let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let name: String = device.chars().map(letter).collect();
        let file = format!("tuned-{name}-{multiprocessors}-{kernels}.json");
        let head = Head { format: FORMAT.to_owned(), device: device.to_owned(), multiprocessors, kernels };
        Self { path: cache.folder().map(|f| f.join(file)), head }
    }

    /// The file, if there is a folder for it.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// All choices that can be used. What cannot is left out, with a warning in the log.
    pub fn load(&self) -> TunedPlans {
        let mut plans = TunedPlans::default();
        let Some(path) = &self.path else { return plans };
        for entry in self.entries(path) {
            match entry.resolve() {
                Ok((key, plan)) => {
                    plans.add(&key, entry.tokens, plan);
                }
                Err(reason) => tracing::warn!("{}: a tuned choice is ignored: {reason}", path.display()),
            }
        }
        plans
    }

    /// Keeps what was found for `m` tokens, in the place of what was known about them. The file is replaced as a whole;
    /// processes that do this at the same time wait for each other.
    ///
    /// # Errors
    /// [`CudaError::Tuned`] when there is no folder or it cannot be written.
    pub fn put(&self, key: &TunedKey, m: usize, choice: &TunedChoice) -> Result<()> {
        self.put_all(key, &[(m, *choice)])
    }

    /// As [`put`](Self::put), for several numbers of tokens.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_all(&self, key: &TunedKey, choices: &[(usize, TunedChoice)]) -> Result<()> {
        let path = self.path.as_ref().ok_or_else(|| CudaError::Tuned {
            path: PathBuf::from("tuned-*.json"),
            source: io::Error::other("there is no folder for caches"),
        })?;
        self.merge(path, choices.iter().map(|(m, choice)| Entry::new(key, *m, choice)).collect())
            .map_err(|source| CudaError::Tuned { path: path.clone(), source })
    }

    fn merge(&self, path: &Path, new: Vec<Entry>) -> io::Result<()> {
        let folder = path.parent().ok_or(io::ErrorKind::NotADirectory)?;
        fs::create_dir_all(folder)?;
        // Released when it is closed, also by a crash. The file stays: whoever removed it would part those who wait.
        let lock = File::create(path.with_extension("lock"))?;
        lock.lock()?;
        let mut entries = self.entries(path);
        let places: HashSet<_> = new.iter().map(Entry::place).collect();
        entries.retain(|e| !places.contains(&e.place()) && e.resolve().is_ok());
        entries.extend(new.iter().cloned());
        entries.sort_by(|a, b| a.place().cmp(&b.place()));
        let choices = entries.iter().map(serde_json::to_value).collect::<serde_json::Result<_>>()?;
        let text = serde_json::to_string_pretty(&Content { head: self.head.clone(), choices })? + "\n";
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    }

    /// The entries of the file that parse.
    fn entries(&self, path: &Path) -> Vec<Entry> {
        let ignored = |what: &str, reason: &dyn std::fmt::Display| {
            tracing::warn!("{}: {what} ignored: {reason}", path.display());
        };
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    ignored("tuned choices are", &error);
                }
                return Vec::new();
            }
        };
        let content: Content = match serde_json::from_slice(&bytes) {
            Ok(content) => content,
            Err(error) => {
                ignored("damaged tuned choices are", &error);
                return Vec::new();
            }
        };
        if content.head != self.head {
            ignored("tuned choices are", &"they are for another GPU or other kernels");
            return Vec::new();
        }
        let parsed = content.choices.into_iter().map(serde_json::from_value);
        parsed.filter_map(|e| e.inspect_err(|error| ignored("a tuned choice is", error)).ok()).collect()
    }
}

impl Entry {
    fn new(key: &TunedKey, m: usize, choice: &TunedChoice) -> Self {
        Self {
            architecture: key.arch.to_string(),
            weights: key.types.weights().short_name(),
            activations: key.types.activation().kernel_name().to_owned(),
            output: key.types.output().kernel_name().to_owned(),
            n: key.n,
            k: key.k,
            tokens: m,
            kernel: choice.plan.map(|p| p.instance.source().name),
            split: choice.plan.is_some_and(|p| p.stream_k),
            paired: choice.plan.is_some_and(|p| p.paired),
            microseconds: choice.microseconds,
            heuristic_microseconds: choice.heuristic_microseconds,
        }
    }

    /// What it is about: entries that agree in this replace each other.
    fn place(&self) -> (&str, [&str; 3], usize, usize, usize) {
        let types = [self.weights.as_str(), &self.activations, &self.output];
        (&self.architecture, types, self.n, self.k, self.tokens)
    }

    /// What the names mean to this version.
    fn resolve(&self) -> Result<(TunedKey, Option<Plan>), String> {
        let arch = self.architecture.parse()?;
        let weights = WeightKind::ALL.into_iter().find(|w| w.short_name() == self.weights);
        let weights = weights.ok_or_else(|| format!("{:?} are no weights", self.weights))?;
        let output = DType::from_kernel_name(&self.output);
        let output = output.ok_or_else(|| format!("{:?} is no output", self.output))?;
        let activation = DType::from_kernel_name(&self.activations);
        let activation = activation.ok_or_else(|| format!("{:?} are no activations", self.activations))?;
        let types = GemmTypes::new(weights, activation, output).map_err(|e| e.to_string())?;
        let key = TunedKey { arch, types, n: self.n, k: self.k };
        let Some(kernel) = &self.kernel else { return Ok((key, None)) };
        // Those that are candidates for some number of tokens; which, is asked when a plan is needed.
        let instance = instances(types, arch).into_iter().find(|i| i.source().name == *kernel);
        let mut plans = instance.into_iter().flat_map(Plan::all);
        plans
            .find(|p| (p.stream_k, p.paired) == (self.split, self.paired))
            .map(|p| (key, Some(p)))
            .ok_or_else(|| {
                let how = format!("(split: {}, paired: {})", self.split, self.paired);
                format!("{kernel:?} {how} is no kernel for {arch}")
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: TunedKey = TunedKey {
        arch: Arch::Sm90a,
        types: GemmTypes::int8(WeightKind::Channel4, DType::F16),
        n: 8192,
        k: 21760,
    };

    fn store(folder: &Path) -> TunedStore {
        TunedStore::new(&Cache::in_folder(folder), "NVIDIA H100 80GB HBM3", 132)
    }

    /// Candidate number `i` for `m` tokens.
    fn choice(m: usize, i: usize) -> TunedChoice {
        let plan = candidates(KEY.types, KEY.arch, m, SumOrder::Free)[i];
        TunedChoice { plan: Some(plan), microseconds: 10.0, heuristic_microseconds: 12.0 }
    }

    const KEEP: TunedChoice = TunedChoice { plan: None, microseconds: 12.0, heuristic_microseconds: 12.0 };

    #[test]
    fn buckets_are_stretches_of_numbers() {
        assert_eq!([1, 8, 9, 17, 33, 48, 49, 65].map(|m| bucket(m).1), [8, 8, 16, 32, 48, 48, 64, 96]);
        assert_eq!(bucket(300), (257, 384));
        assert_eq!(bucket(4096), (3073, 4096));
        let mut m = 1;
        while m < 70_000 {
            let (first, last) = bucket(m);
            assert_eq!(first, m, "a gap");
            assert!(bucket(last) == (first, last) && bucket(first.midpoint(last)) == (first, last));
            m = last + 1;
        }
    }

    #[test]
    fn choices_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder.path().join("made"));
        assert_eq!(store.load().plan(&KEY, 16), None);
        store.put(&KEY, 16, &choice(16, 1)).unwrap();
        store.put(&KEY, 300, &choice(300, 2)).unwrap();
        let plans = store.load();
        // For the bucket, not beyond.
        for m in [9, 16] {
            assert_eq!(plans.plan(&KEY, m), choice(16, 1).plan);
        }
        for m in [257, 300, 384] {
            assert_eq!(plans.plan(&KEY, m), choice(300, 2).plan);
        }
        for m in [1, 8, 17, 256, 385] {
            assert_eq!(plans.plan(&KEY, m), None);
        }
        // For exactly this product.
        for other in [
            TunedKey { n: 4096, ..KEY },
            TunedKey { k: 4096, ..KEY },
            TunedKey { types: GemmTypes::int8(WeightKind::Channel4, DType::BF16), ..KEY },
            TunedKey { types: GemmTypes::int8(WeightKind::GroupHalf4(128), DType::F16), ..KEY },
            TunedKey { types: GemmTypes::new(WeightKind::Channel4, DType::F16, DType::F16).unwrap(), ..KEY },
            TunedKey { arch: Arch::Sm80, ..KEY },
        ] {
            assert_eq!(plans.plan(&other, 16), None);
        }
        // Nothing but the file and its lock.
        assert_eq!(store.path().unwrap().parent().unwrap().read_dir().unwrap().count(), 2);
    }

    #[test]
    fn every_plan_of_every_kind_has_a_name() {
        for (types, arch) in GemmTypes::all().into_iter().flat_map(|t| Arch::ALL.map(|a| (t, a))) {
            let key = TunedKey { arch, types, ..KEY };
            for m in [1, 16, 100, 4096] {
                for plan in candidates(types, arch, m, SumOrder::Free) {
                    let entry = Entry::new(&key, m, &TunedChoice { plan: Some(plan), ..KEEP });
                    assert_eq!(entry.resolve(), Ok((key, Some(plan))));
                }
            }
        }
    }

    #[test]
    fn the_next_number_of_tokens_counts() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        store.put(&KEY, 260, &choice(300, 0)).unwrap();
        store.put(&KEY, 380, &choice(300, 1)).unwrap();
        let plan = |m| store.load().plan(&KEY, m);
        assert_eq!(plan(257), choice(300, 0).plan);
        assert_eq!(plan(260), choice(300, 0).plan);
        assert_eq!(plan(261), choice(300, 1).plan, "what is nearer below may have no room for it");
        assert_eq!(plan(384), choice(300, 1).plan, "with none above, the last below");
        // Tuned again: the heuristic's choice stands there, and is not overruled by a neighbour.
        store.put(&KEY, 380, &KEEP).unwrap();
        assert_eq!(plan(384), None);
        assert_eq!(plan(300), None);
        assert_eq!(plan(260), choice(300, 0).plan);
    }

    #[test]
    fn plans_that_do_not_fit_are_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        // Tiles of 48 tokens are a candidate for 32 tokens, not for 17.
        let plans = candidates(KEY.types, KEY.arch, 32, SumOrder::Free);
        let plan = plans
            .into_iter()
            .find(|p| p.instance.tile().tokens == 48 && p.instance.tile().cluster_split_k == 1);
        assert!(plan.is_some());
        store.put(&KEY, 32, &TunedChoice { plan, ..KEEP }).unwrap();
        assert_eq!(store.load().plan(&KEY, 32), plan);
        assert_eq!(store.load().plan(&KEY, 17), None);
        // Two CTAs cannot share 128 input channels.
        let short = TunedKey { k: 128, ..KEY };
        let plans = candidates(KEY.types, KEY.arch, 32, SumOrder::Free);
        let plan = plans.into_iter().find(|p| p.instance.tile().cluster_split_k == 2);
        assert!(plan.is_some());
        store.put(&short, 32, &TunedChoice { plan, ..KEEP }).unwrap();
        assert_eq!(store.load().plan(&short, 32), None);
    }

    #[test]
    fn damaged_files_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        for bad in ["", "{", "[]", "{\"choices\": 3}", "\u{0}\u{0}"] {
            fs::write(store.path().unwrap(), bad).unwrap();
            assert_eq!(store.load().plan(&KEY, 16), None);
            store.put(&KEY, 16, &choice(16, 0)).unwrap();
            assert_eq!(store.load().plan(&KEY, 16), choice(16, 0).plan);
        }
    }

    #[test]
    fn bad_entries_do_not_spoil_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        store.put(&KEY, 16, &choice(16, 0)).unwrap();
        store.put(&KEY, 64, &choice(64, 0)).unwrap();
        let path = store.path().unwrap();
        let good: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        for (field, value) in [
            ("kernel", Value::from("sm90_gemm_of_old")),
            ("kernel", Value::from(3)),
            ("tokens", Value::Null),
            ("architecture", Value::from("sm_75")),
            ("weights", Value::from("c5")),
            ("output", Value::from("f8")),
            ("activations", Value::from("f16")),
        ] {
            let mut bad = good.clone();
            bad["choices"][0][field] = value;
            fs::write(path, bad.to_string()).unwrap();
            assert_eq!(store.load().plan(&KEY, 16), None, "{field}");
            assert_eq!(store.load().plan(&KEY, 64), choice(64, 0).plan, "{field}");
        }
        // They are gone when the file is written the next time.
        store.put(&KEY, 1024, &choice(1024, 0)).unwrap();
        let written: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!(written["choices"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn other_devices_and_kernels_have_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::in_folder(folder.path());
        let device = |name: &str, count, revision: &str| {
            TunedStore::for_revision(&cache, name, count, revision.to_owned())
        };
        let store = device("GPU", 132, "now");
        store.put(&KEY, 16, &choice(16, 0)).unwrap();
        for other in [device("GPU", 132, "old"), device("GPU", 114, "now"), device("CPU", 132, "now")] {
            assert_ne!(store.path(), other.path());
            assert_eq!(other.load().plan(&KEY, 16), None);
            // Nor is a file believed that was renamed.
            fs::copy(store.path().unwrap(), other.path().unwrap()).unwrap();
            assert_eq!(other.load().plan(&KEY, 16), None);
        }
        assert_eq!(store.load().plan(&KEY, 16), choice(16, 0).plan);
    }

    #[test]
    fn writers_do_not_lose_each_others_choices() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|s| {
            for thread in 0..8 {
                let store = store(folder.path());
                s.spawn(move || {
                    for n in 1..=10 {
                        let key = TunedKey { n: 16 * (10 * thread + n), ..KEY };
                        store.put(&key, 16, &choice(16, 0)).unwrap();
                        assert_eq!(store.load().plan(&key, 16), choice(16, 0).plan);
                    }
                });
            }
        });
        let plans = store(folder.path()).load();
        assert_eq!(plans.plans.len(), 80);
    }

    #[test]
    fn without_a_folder() {
        let store = TunedStore::new(&Cache::none(), "GPU", 132);
        assert_eq!(store.load().plan(&KEY, 16), None);
        assert!(store.put(&KEY, 16, &KEEP).unwrap_err().to_string().contains("no folder"));
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = self::store(&file.path().join("inside a file")).put(&KEY, 16, &KEEP).unwrap_err();
        assert!(error.to_string().contains("inside a file"), "{error}");
    }

    #[test]
    fn only_clearly_faster_plans_are_kept() {
        assert!(is_worth_keeping(97.9, 100.0));
        assert!(!is_worth_keeping(98.1, 100.0) && !is_worth_keeping(100.0, 100.0));
    }
}
