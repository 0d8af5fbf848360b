//! A hub on a local port stands in for the real one.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use hf_hub::{Cache, RepoType};

use super::{HubOptions, client::Client, dataset, dataset::choose, model_files, parse_id, resolve};
use crate::Result;

const MAIN: &str = "1111111111111111111111111111111111111111";
const OLD: &str = "2222222222222222222222222222222222222222";

/// Repositories (`models/a/b@revision`): commit and files.
type Repos = BTreeMap<String, (&'static str, Vec<(&'static str, &'static str)>)>;

struct Hub {
    endpoint: String,
    /// Requests so far: path and Authorization header.
    log: Arc<Mutex<Vec<(String, String)>>>,
}

impl Hub {
    fn start() -> Self {
        let weights = vec![
            ("config.json", "{}"),
            ("tokenizer.json", "tok"),
            ("README.md", "not fetched"),
            (
                "model.safetensors.index.json",
                r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#,
            ),
            ("model-1.safetensors", "one"),
            ("model-2.safetensors", "two"),
            ("consolidated.safetensors", "not fetched"),
        ];
        let old = vec![("config.json", "{\"old\": 1}"), ("model.safetensors", "old weights")];
        let mut repos = Repos::new();
        repos.insert("models/owner/sharded@main".into(), (MAIN, weights));
        repos.insert("models/owner/sharded@v1.0".into(), (OLD, old));
        repos.insert(
            "models/owner/ggufs@main".into(),
            (MAIN, vec![("m.Q4_0.gguf", "4"), ("m.Q8_0.gguf", "8")]),
        );
        repos.insert(
            "models/owner/pickle@main".into(),
            (MAIN, vec![("config.json", "{}"), ("pytorch_model.bin", "x")]),
        );
        repos.insert(
            "datasets/owner/texts@main".into(),
            (
                MAIN,
                vec![
                    ("data/train-00000-of-00002.parquet", "p0"),
                    ("data/train-00001-of-00002.parquet", "p1"),
                    ("data/test-00000-of-00001.parquet", "t"),
                ],
            ),
        );
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&log);
        let repos = Arc::new(repos);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (repos, seen) = (Arc::clone(&repos), Arc::clone(&seen));
                std::thread::spawn(move || answer(stream, &repos, &seen));
            }
        });
        Self { endpoint, log }
    }

    fn client(&self, cache: &Path, kind: RepoType, repo: &str, options: &HubOptions) -> Client {
        Client::new(Cache::new(cache.join("hub")), &self.endpoint, kind, repo, options).unwrap()
    }

    fn model(&self, cache: &Path, repo: &str, file: Option<&str>, options: &HubOptions) -> Result<PathBuf> {
        model_files(&self.client(cache, RepoType::Model, repo, options), file)
    }

    fn requests(&self) -> usize {
        self.log.lock().unwrap().len()
    }
}

fn answer(stream: TcpStream, repos: &Repos, seen: &Mutex<Vec<(String, String)>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut request = String::new();
    reader.read_line(&mut request).unwrap();
    let path = request.split(' ').nth(1).unwrap_or("").to_owned();
    let (mut start, mut end, mut token) = (0usize, None, String::new());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) <= 2 {
            break;
        }
        let (name, value) = line.trim().split_once(':').unwrap();
        match name.to_lowercase().as_str() {
            "authorization" => token = value.trim().to_owned(),
            "range" => {
                let (a, b) = value.trim().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
                start = a.parse().unwrap();
                end = b.parse::<usize>().ok();
            }
            _ => {}
        }
    }
    seen.lock().unwrap().push((path.clone(), token.clone()));
    let reply = |status: &str, headers: &str, body: &str| {
        let head = format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
            body.len()
        );
        let _ = (&stream).write_all((head + body).as_bytes());
    };
    if path.contains("owner/private") && token != "Bearer secret" {
        return reply("401 Unauthorized", "", "");
    }
    if path.contains("owner/gated") {
        return reply("403 Forbidden", "", "");
    }
    if path.contains("owner/broken") {
        return reply("503 Service Unavailable", "", "");
    }
    if let Some(rest) = path.strip_prefix("/api/") {
        let (repo, revision) = rest.split_once("/revision/").unwrap();
        let Some((commit, files)) = repos.get(&format!("{repo}@{revision}")) else {
            return reply("404 Not Found", "", "");
        };
        let siblings: Vec<_> = files.iter().map(|(name, _)| serde_json::json!({"rfilename": name})).collect();
        return reply("200 OK", "", &serde_json::json!({"sha": commit, "siblings": siblings}).to_string());
    }
    let (repo, rest) = path.trim_start_matches('/').split_once("/resolve/").unwrap();
    let (revision, file) = rest.split_once('/').unwrap();
    let repo = if repo.starts_with("datasets/") { repo.to_owned() } else { format!("models/{repo}") };
    let found =
        repos.iter().find(|(key, (commit, _))| key.starts_with(&format!("{repo}@")) && *commit == revision);
    let body = found.and_then(|(_, (_, files))| files.iter().find(|(name, _)| *name == file));
    let Some((_, body)) = body else { return reply("404 Not Found", "", "") };
    let part = &body[start..end.map_or(body.len(), |e| (e + 1).min(body.len()))];
    let headers = format!(
        "etag: \"{revision}-{}\"\r\nx-repo-commit: {revision}\r\ncontent-range: bytes {start}-{}/{}\r\n",
        file.replace('/', "-"),
        start + part.len().max(1) - 1,
        body.len()
    );
    reply("206 Partial Content", &headers, part);
}

fn options() -> HubOptions {
    HubOptions::default()
}

fn offline() -> HubOptions {
    HubOptions { offline: true, ..options() }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_sharded_model_is_fetched_once_and_found_offline() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    let dir = hub.model(cache.path(), "owner/sharded", None, &options()).unwrap();
    assert_eq!(
        names(&dir),
        [
            "config.json",
            "model-1.safetensors",
            "model-2.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json"
        ]
    );
    assert_eq!(std::fs::read_to_string(dir.join("model-2.safetensors")).unwrap(), "two");

    let before = hub.requests();
    assert_eq!(hub.model(cache.path(), "owner/sharded", None, &options()).unwrap(), dir);
    assert_eq!(hub.requests(), before + 1, "only the list of files is asked for again");
    assert_eq!(hub.model(cache.path(), "owner/sharded", None, &offline()).unwrap(), dir);
    let commit = HubOptions { revision: Some(MAIN.into()), ..offline() };
    assert_eq!(hub.model(cache.path(), "owner/sharded", None, &commit).unwrap(), dir);
    assert_eq!(hub.requests(), before + 1, "offline means offline");

    std::fs::remove_file(dir.join("model-2.safetensors")).unwrap();
    let e = hub.model(cache.path(), "owner/sharded", None, &offline()).unwrap_err().to_string();
    assert!(e.contains("model-2.safetensors") && e.contains("with network"), "{e}");
}

#[test]
fn a_revision_is_a_model_of_its_own() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    let v1 = HubOptions { revision: Some("v1.0".into()), ..options() };
    let dir = hub.model(cache.path(), "owner/sharded", None, &v1).unwrap();
    assert_eq!(std::fs::read_to_string(dir.join("model.safetensors")).unwrap(), "old weights");
    assert!(hub.model(cache.path(), "owner/sharded", None, &offline()).is_err(), "main was never fetched");
    let e = hub.model(
        cache.path(),
        "owner/sharded",
        None,
        &HubOptions { revision: Some("v9".into()), ..options() },
    );
    let e = e.unwrap_err().to_string();
    assert!(e.contains("404") && e.contains("revision v9"), "{e}");
    for bad in ["../../x", "", "a b", "/root"] {
        let options = HubOptions { revision: Some(bad.into()), ..offline() };
        assert!(
            Client::new(Cache::new("x".into()), "http://x", RepoType::Model, "a/b", &options).is_err(),
            "{bad:?}"
        );
    }
}

#[test]
fn a_gguf_file_is_named_after_a_colon() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    let file = hub.model(cache.path(), "owner/ggufs", Some("m.Q8_0.gguf"), &options()).unwrap();
    assert!(file.ends_with("m.Q8_0.gguf"));
    assert_eq!(std::fs::read_to_string(file).unwrap(), "8");
    let e = hub.model(cache.path(), "owner/ggufs", None, &options()).unwrap_err().to_string();
    assert!(e.contains("owner/ggufs:m.Q4_0.gguf"), "{e}");
    let e = hub.model(cache.path(), "owner/ggufs", Some("m.Q5_0.gguf"), &options()).unwrap_err().to_string();
    assert!(e.contains("m.Q4_0.gguf, m.Q8_0.gguf"), "{e}");
    let e = hub.model(cache.path(), "owner/ggufs", Some("config.json"), &options()).unwrap_err().to_string();
    assert!(e.contains("only a GGUF file"), "{e}");
}

#[test]
fn refusals_say_what_to_do() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    let message =
        |repo: &str, o: &HubOptions| hub.model(cache.path(), repo, None, o).unwrap_err().to_string();
    let e = message("owner/private", &options());
    assert!(e.contains("401") && e.contains("mistyped") && e.contains("--token"), "{e}");
    let e = message("owner/gated", &HubOptions { token: Some("secret".into()), ..options() });
    assert!(e.contains("403") && e.contains("accept its terms") && e.contains("expired"), "{e}");
    let e = message("owner/missing", &options());
    assert!(e.contains("404") && e.contains("spelling"), "{e}");
    let e = message("owner/broken", &options());
    assert!(e.contains("503") && e.contains("later"), "{e}");
    let e = message("owner/pickle", &options());
    assert!(e.contains("pickle"), "{e}");
    let e = message("owner/sharded", &offline());
    assert!(e.contains("not in the hub's cache") && e.contains("local path"), "{e}");

    // A port on which nobody listens: bound, then released.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("http://{port}");
    let client =
        Client::new(Cache::new(cache.path().into()), &endpoint, RepoType::Model, "a/b", &options()).unwrap();
    let e = model_files(&client, None).unwrap_err().to_string();
    assert!(e.contains("cannot reach") && e.contains("--offline"), "{e}");
}

#[test]
fn tokens_come_from_the_options_or_the_token_file() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    let ask = |options: &HubOptions| {
        let _ = hub.model(cache.path(), "owner/private", None, options);
        hub.log.lock().unwrap().last().unwrap().1.clone()
    };
    assert_eq!(ask(&options()), "");
    std::fs::write(cache.path().join("token"), "from-file\n").unwrap();
    assert_eq!(ask(&options()), "Bearer from-file");
    let secret = HubOptions { token: Some("secret".into()), ..options() };
    assert_eq!(ask(&secret), "Bearer secret");
    let e = hub.model(cache.path(), "owner/private", None, &secret).unwrap_err().to_string();
    assert!(e.contains("404"), "the token opens the door, behind which there is nothing: {e}");
}

#[test]
fn a_data_set_gives_the_first_file_of_its_train_split() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    let fetch = |part: Option<&str>, o: &HubOptions| {
        dataset::files(&hub.client(cache.path(), RepoType::Dataset, "owner/texts", o), part)
    };
    let files = fetch(None, &options()).unwrap();
    assert_eq!(files.len(), 1);
    assert!(files[0].ends_with("data/train-00000-of-00002.parquet"));
    assert_eq!(std::fs::read_to_string(&files[0]).unwrap(), "p0");
    assert_eq!(fetch(None, &offline()).unwrap(), files);
    assert!(fetch(Some("data/test"), &options()).unwrap()[0].ends_with("data/test-00000-of-00001.parquet"));
    assert!(fetch(Some("/validation"), &options()).unwrap_err().to_string().contains("no split"));
}

#[test]
fn files_of_data_sets_are_chosen_by_configuration_split_and_kind() {
    let wikitext = [
        "README.md",
        "wikitext-103-raw-v1/train-00000-of-00002.parquet",
        "wikitext-2-raw-v1/test-00000-of-00001.parquet",
        "wikitext-2-raw-v1/train-00000-of-00001.parquet",
    ];
    assert_eq!(choose(&wikitext, Some("wikitext-2-raw-v1")), Ok(wikitext[3]));
    assert_eq!(choose(&wikitext, Some("wikitext-2-raw-v1/test")), Ok(wikitext[2]));
    assert!(choose(&wikitext, None).unwrap_err().contains("wikitext-103-raw-v1, wikitext-2-raw-v1"));
    assert!(choose(&wikitext, Some("wikitext-2")).unwrap_err().contains("no configuration"));
    assert_eq!(choose(&["dataset_infos.json", "texts.jsonl"], None), Ok("texts.jsonl"));
    assert_eq!(choose(&["train.txt", "train.jsonl", "val.jsonl.zst"], None), Ok("train.jsonl"));
    assert!(choose(&["a.jsonl", "b.jsonl"], None).unwrap_err().contains("a.jsonl, b.jsonl"));
    let c4 = ["en/c4-train.00000-of-01024.json.gz", "en/c4-validation.00000-of-00008.json.gz"];
    assert_eq!(choose(&c4, None), Ok(c4[0]));
    assert!(choose(&["train.tar.gz"], None).unwrap_err().contains("unpack"));
    assert!(choose(&["script.py"], None).unwrap_err().contains("script"));
}

#[test]
fn paths_and_ids() {
    assert_eq!(parse_id("Qwen/Qwen2.5-0.5B"), Some(("Qwen/Qwen2.5-0.5B", None)));
    assert_eq!(parse_id("a/b:c/d.gguf"), Some(("a/b", Some("c/d.gguf"))));
    for bad in
        ["", "gpt2", "./model", "../a", "/model", "a/b/c", "~/model", "models/x.gguf", "a/b c", "a/", "a/b:"]
    {
        assert_eq!(parse_id(bad), None, "{bad:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    assert_eq!(resolve(path, &offline()).unwrap(), dir.path());
    let e = resolve(&format!("{path}/typo"), &offline()).unwrap_err().to_string();
    assert!(e.contains("neither an existing path nor an id"), "{e}");
}
