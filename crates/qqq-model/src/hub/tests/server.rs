//! A hub on a local port.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use sha2::{Digest, Sha256};

use super::super::{HubOptions, Kind, client::Client, environment::Settings, model_files};
use crate::Result;

pub const MAIN: &str = "1111111111111111111111111111111111111111";
pub const OLD: &str = "2222222222222222222222222222222222222222";

type Files = Vec<(&'static str, Vec<u8>)>;

/// Repositories (`models/a/b@revision`): commit and files.
#[derive(Default)]
pub struct Repos(BTreeMap<String, (&'static str, Files)>);

impl Repos {
    pub fn with(mut self, key: &str, commit: &'static str, files: &[(&'static str, &str)]) -> Self {
        let files = files.iter().map(|(name, text)| (*name, text.as_bytes().to_vec())).collect();
        self.0.insert(key.into(), (commit, files));
        self
    }
}

/// How many of the next requests for the content of a `.safetensors` file go wrong, and how.
#[derive(Default)]
pub struct Faults {
    /// The connection ends in the middle of what is due.
    pub cut: AtomicUsize,
    /// A page comes instead.
    pub page: AtomicUsize,
    /// Requests that are still answered by status 503.
    pub busy: AtomicUsize,
    /// The right number of wrong bytes.
    pub wrong: AtomicUsize,
    /// Ranges are ignored.
    pub whole: AtomicUsize,
    /// HEAD is not known, for whatever file.
    pub no_head: AtomicUsize,
}

pub struct Hub {
    pub endpoint: String,
    /// Requests so far: method, path and Authorization header.
    pub log: Arc<Mutex<Vec<(String, String, String)>>>,
    pub faults: Arc<Faults>,
}

impl Hub {
    pub fn start(repos: Repos) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let faults = Arc::new(Faults::default());
        let (seen, wrong) = (Arc::clone(&log), Arc::clone(&faults));
        let repos = Arc::new(repos);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (repos, seen, wrong) = (Arc::clone(&repos), Arc::clone(&seen), Arc::clone(&wrong));
                std::thread::spawn(move || answer(&stream, &repos, &seen, &wrong));
            }
        });
        Self { endpoint, log, faults }
    }

    pub fn client(&self, cache: &Path, kind: Kind, repo: &str, options: &HubOptions) -> Client {
        client(&self.endpoint, cache, kind, repo, options)
    }

    pub fn model(
        &self,
        cache: &Path,
        repo: &str,
        file: Option<&str>,
        options: &HubOptions,
    ) -> Result<PathBuf> {
        model_files(&self.client(cache, Kind::Model, repo, options), file)
    }

    pub fn requests(&self) -> usize {
        self.log.lock().unwrap().len()
    }
}

pub fn client(endpoint: &str, cache: &Path, kind: Kind, repo: &str, options: &HubOptions) -> Client {
    let settings = Settings {
        cache: cache.join("hub"),
        endpoint: endpoint.into(),
        token: options.token.clone(),
        offline: options.offline,
        patience: Duration::from_secs(5),
        certificates: None,
    };
    let mut client = Client::new(&settings, kind, repo, options).unwrap();
    client.pause = Duration::from_millis(1);
    client
}

/// Whether one of the faults that are left is due.
fn due(count: &AtomicUsize) -> bool {
    count.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok()
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn answer(stream: &TcpStream, repos: &Repos, seen: &Mutex<Vec<(String, String, String)>>, faults: &Faults) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut request = String::new();
    reader.read_line(&mut request).unwrap();
    let mut words = request.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (mut start, mut token) = (None, String::new());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) <= 2 {
            break;
        }
        let (name, value) = line.trim().split_once(':').unwrap();
        match name.to_lowercase().as_str() {
            "authorization" => token = value.trim().to_owned(),
            "range" => {
                let range = value.trim().strip_prefix("bytes=").unwrap();
                start = Some(range.strip_suffix('-').unwrap().parse::<usize>().unwrap());
            }
            _ => {}
        }
    }
    seen.lock().unwrap().push((method.clone(), path.clone(), token.clone()));
    // `sent` of the body's bytes go out.
    let send = |status: &str, headers: &str, body: &[u8], sent: usize| {
        let head = format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
            body.len()
        );
        let body = if method == "HEAD" { &[][..] } else { &body[..sent] };
        let _ = (&*stream).write_all(&[head.as_bytes(), body].concat());
    };
    let reply = |status: &str, headers: &str, body: &[u8]| send(status, headers, body, body.len());
    if path.contains("owner/private") && token != "Bearer secret" {
        return reply("401 Unauthorized", "", b"");
    }
    if path.contains("owner/gated") {
        return reply("403 Forbidden", "x-error-code: GatedRepo\r\nx-error-message: ask them\r\n", b"");
    }
    if path.contains("owner/broken") {
        return reply("503 Service Unavailable", "", b"");
    }
    if path.contains("owner/limited") {
        return reply("429 Too Many Requests", "", b"");
    }
    if path.contains("owner/portal") {
        return reply("200 OK", "content-type: text/html\r\n", b"<html>log in</html>");
    }
    if let Some(rest) = path.strip_prefix("/api/") {
        let (repo, revision) = rest.split_once("/revision/").unwrap();
        let revision = revision.replace("%2F", "/");
        let Some((commit, files)) = repos.0.get(&format!("{repo}@{revision}")) else {
            return reply("404 Not Found", "", b"");
        };
        let siblings: Vec<_> = files.iter().map(|(name, _)| serde_json::json!({"rfilename": name})).collect();
        let text = serde_json::json!({"sha": commit, "siblings": siblings}).to_string();
        return reply("200 OK", "", text.as_bytes());
    }
    let (repo, rest) = path.trim_start_matches('/').split_once("/resolve/").unwrap();
    let (revision, file) = rest.split_once('/').unwrap();
    let file = file.replace("%20", " ");
    let repo = if repo.starts_with("datasets/") { repo.to_owned() } else { format!("models/{repo}") };
    let found =
        repos.0.iter().find(|(key, (commit, _))| key.starts_with(&format!("{repo}@")) && *commit == revision);
    let body = found.and_then(|(_, (_, files))| files.iter().find(|(name, _)| *name == file));
    let Some((_, body)) = body else { return reply("404 Not Found", "", b"") };
    if method == "HEAD" && due(&faults.no_head) {
        return reply("501 Not Implemented", "", b"");
    }
    let is_large = file.ends_with(".safetensors");
    if is_large && method == "GET" {
        if due(&faults.busy) {
            return reply("503 Service Unavailable", "", b"");
        }
        if due(&faults.page) {
            return reply("200 OK", "content-type: text/html\r\n", b"<html>wait</html>");
        }
        if due(&faults.whole) {
            start = None;
        }
    }
    let from = start.unwrap_or(0);
    // A large file has the SHA-256 of its content as its tag.
    let tag = if is_large { sha256(body) } else { format!("{revision}-{}", file.replace(['/', ' '], "-")) };
    let part = &body[from..];
    let mut headers = format!("etag: \"{tag}\"\r\nx-repo-commit: {revision}\r\n");
    let status = if start.is_some() { "206 Partial Content" } else { "200 OK" };
    if start.is_some() {
        headers += &format!("content-range: bytes {from}-{}/{}\r\n", body.len() - 1, body.len());
    }
    let is_content = is_large && method == "GET";
    let part = if is_content && due(&faults.wrong) { vec![b'X'; part.len()] } else { part.to_vec() };
    let sent = if is_content && due(&faults.cut) { part.len() / 2 } else { part.len() };
    send(status, &headers, &part, sent);
}
