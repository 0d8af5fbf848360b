//! One file of the hub into the cache: resumed where the connection breaks, checked, then given its name.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use qqq_formats::lock::{Attempt, FileLock};
use sha2::{Digest, Sha256};

use super::{
    Transfer,
    cache::RepoCache,
    http::{Fault, Http, escaped, header},
};

/// Failures in a row, without a byte between them, after which a download is given up.
const MAX_FAILURES: u32 = 5;
/// How often content that cannot be the file's is taken for a passing fault.
const MAX_WRONG: u32 = 2;
/// Between two looks at a lock that another process holds.
const LOCK_INTERVAL: Duration = Duration::from_millis(200);

/// What is to be fetched, and how.
pub(super) struct Download<'a> {
    pub http: &'a Http,
    pub cache: &'a RepoCache,
    /// Of the file on the hub.
    pub address: String,
    pub commit: &'a str,
    /// Path within the repository.
    pub name: &'a str,
    /// Before the second attempt; doubled for each further one.
    pub pause: Duration,
    pub progress: Option<fn(&Transfer<'_>)>,
}

/// What the hub says of a file before it is fetched.
#[derive(Debug, PartialEq, Eq)]
struct Remote {
    /// Its content's name in the cache.
    blob: String,
    size: Option<u64>,
    /// Of large files (LFS, Xet) the hub gives the SHA-256 as their entity tag.
    sha256: Option<String>,
}

/// A blob that is being received.
struct Part {
    path: PathBuf,
    file: File,
    length: u64,
    hash: Sha256,
}

impl Download<'_> {
    /// The file's path in the snapshot.
    pub fn run(&self) -> Result<PathBuf, Fault> {
        let remote = retried(self.pause, || Remote::of(&self.http.head(&self.address)?))?;
        let blob = self.cache.blob(&remote.blob);
        let locked = self.lock(&remote.blob)?;
        if !is_whole(&blob, remote.size) {
            // Without a lock another process may write the same.
            let own = if locked.is_some() { String::new() } else { format!(".{}", std::process::id()) };
            let part = self.cache.blob(&format!("{}{own}.incomplete", remote.blob));
            fs::create_dir_all(self.cache.blob("")).map_err(Fault::disk(&blob))?;
            self.receive_whole(&remote, &part)?;
            fs::rename(&part, &blob).map_err(Fault::disk(&blob))?;
        }
        self.cache.link(&remote.blob, self.commit, self.name).map_err(Fault::disk(&blob))
    }

    /// Waits until no other process fetches the same blob; `None` where there are no locks.
    fn lock(&self, blob: &str) -> Result<Option<FileLock>, Fault> {
        let path = self.cache.lock(blob);
        fs::create_dir_all(path.parent().unwrap_or(&path)).map_err(Fault::disk(&path))?;
        let mut waits = false;
        loop {
            match FileLock::attempt(&path).map_err(Fault::disk(&path))? {
                Attempt::Taken(lock) => return Ok(Some(lock)),
                Attempt::NoLocks(_) => return Ok(None),
                Attempt::Held(by) => {
                    if !waits {
                        tracing::warn!("{}: waiting for {by}, which is downloading it", self.name);
                    }
                    waits = true;
                    thread::sleep(LOCK_INTERVAL);
                }
            }
        }
    }

    /// Receives all of a file, over as many connections as it takes.
    fn receive_whole(&self, remote: &Remote, path: &Path) -> Result<(), Fault> {
        // Only of what has a hash can it be told whether the beginning that an earlier run has left is right.
        let mut part = Part::open(path, remote.sha256.is_some())?;
        let (mut failures, mut wrong) = (0, 0);
        loop {
            let before = part.length;
            let outcome = self.receive(remote, &mut part).and_then(|()| part.check(remote));
            failures = if part.length > before { 1 } else { failures + 1 };
            match outcome {
                Ok(()) => return part.file.sync_all().map_err(Fault::disk(path)),
                // A page of a busy hub or proxy goes away; content that does not match, from an earlier run or on
                // the way, is fetched from the beginning.
                Err(Fault::Content(reason)) if wrong < MAX_WRONG => {
                    tracing::warn!("{}: {reason}; again", self.name);
                    wrong += 1;
                    if remote.size.is_none_or(|size| part.length >= size) {
                        part.restart()?;
                    }
                    thread::sleep(self.pause);
                }
                Err(fault) if fault.is_passing() && failures < MAX_FAILURES => {
                    tracing::info!("{}: {fault}; again", self.name);
                    thread::sleep(self.pause * (1 << (failures - 1)));
                }
                Err(fault) => {
                    if remote.sha256.is_none() || matches!(fault, Fault::Content(_)) {
                        // It cannot be resumed; and nobody can be told if it stays.
                        let _ = fs::remove_file(path);
                    }
                    return Err(fault);
                }
            }
        }
    }

    /// Receives what is missing, over one connection.
    fn receive(&self, remote: &Remote, part: &mut Part) -> Result<(), Fault> {
        if remote.size.is_some_and(|size| part.length >= size) {
            // Whole, or longer than the file can be, which the check finds.
            return Ok(());
        }
        let response = self.http.get(&self.address, part.length)?;
        let start = match response.status().as_u16() {
            206 => header(response.headers(), "content-range").and_then(range_start).unwrap_or(part.length),
            416 => {
                part.restart()?;
                return Err(Fault::Lost("the server cannot continue the download".into()));
            }
            // The whole, whatever was asked for.
            _ => 0,
        };
        if start != part.length {
            part.restart()?;
            if start != 0 {
                return Err(Fault::Lost(format!("the server continues at byte {start}, where nobody asked")));
            }
        }
        let length = header(response.headers(), "content-length").and_then(|l| l.parse::<u64>().ok());
        if let (Some(length), Some(size)) = (length, remote.size)
            && length != size - part.length
        {
            let kind = header(response.headers(), "content-type").unwrap_or("of no named type");
            return Err(Fault::Content(format!(
                "the server sends {length} bytes ({kind}) where {} bytes of the file are due; it may be a page of a \
                 proxy, or of the hub, instead of the file",
                size - part.length
            )));
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => part.append(&buffer[..n])?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.http.fault(e.into(), self.http.endpoint())),
            }
            if let Some(show) = self.progress {
                show(&Transfer { file: self.name, done: part.length, size: remote.size });
            }
        }
        match remote.size {
            Some(size) if part.length < size => {
                Err(Fault::Lost(format!("the connection ended after {} of {size} bytes", part.length)))
            }
            _ => Ok(()),
        }
    }
}

/// Does something again that a passing fault has stopped; servers that are silent are not asked twice.
pub(super) fn retried<T>(pause: Duration, mut ask: impl FnMut() -> Result<T, Fault>) -> Result<T, Fault> {
    for attempt in 0.. {
        match ask() {
            Err(fault) if fault.is_passing() && !matches!(fault, Fault::Timeout(_)) && attempt < 2 => {
                tracing::info!("{fault}; again");
                thread::sleep(pause * (1 << attempt));
            }
            outcome => return outcome,
        }
    }
    unreachable!("the loop has no end but those within")
}

impl Remote {
    fn of(response: &ureq::http::Response<ureq::Body>) -> Result<Self, Fault> {
        let headers = response.headers();
        let number = |name: &str| header(headers, name).and_then(|v| v.trim().parse().ok());
        // A redirection's own length is not the file's.
        let own_size = if response.status().is_redirection() { None } else { number("content-length") };
        let tag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag")).unwrap_or_default();
        let tag = tag.trim().trim_start_matches("W/").trim_matches('"');
        if tag.is_empty() {
            return Err(Fault::Content(
                "the server gives no entity tag (ETag) for the file, as a hub does for all its files".into(),
            ));
        }
        let is_sha256 = tag.len() == 64 && tag.bytes().all(|b| b.is_ascii_hexdigit());
        // It becomes a file's name.
        let blob = if tag.starts_with('.') { format!("_{}", escaped(tag)) } else { escaped(tag) };
        Ok(Self {
            blob,
            size: number("x-linked-size").or(own_size),
            sha256: is_sha256.then(|| tag.to_lowercase()),
        })
    }
}

impl Part {
    /// Opens what an earlier run has left, or begins anew.
    fn open(path: &Path, keep: bool) -> Result<Self, Fault> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(!keep)
            .open(path)
            .map_err(Fault::disk(path))?;
        let mut part = Self { path: path.into(), file, length: 0, hash: Sha256::new() };
        let mut buffer = vec![0; 256 << 10];
        loop {
            match part.file.read(&mut buffer).map_err(Fault::disk(path))? {
                0 => return Ok(part),
                n => {
                    part.hash.update(&buffer[..n]);
                    part.length += n as u64;
                }
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.file.write_all(bytes).map_err(Fault::disk(&self.path))?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<(), Fault> {
        self.file.set_len(0).map_err(Fault::disk(&self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(Fault::disk(&self.path))?;
        self.hash = Sha256::new();
        self.length = 0;
        Ok(())
    }

    /// Whether it is what the hub has announced.
    fn check(&self, remote: &Remote) -> Result<(), Fault> {
        if let Some(size) = remote.size
            && size != self.length
        {
            return Err(Fault::Content(format!("{} bytes have come, but the file has {size}", self.length)));
        }
        if let Some(wanted) = &remote.sha256 {
            let found: String = self.hash.clone().finalize().iter().map(|b| format!("{b:02x}")).collect();
            if found != *wanted {
                return Err(Fault::Content(format!(
                    "what has come has the SHA-256 {found}, the file has {wanted}"
                )));
            }
        }
        Ok(())
    }
}

/// Whether a blob is there, as long as it should be.
fn is_whole(blob: &Path, size: Option<u64>) -> bool {
    fs::metadata(blob).is_ok_and(|m| m.is_file() && size.is_none_or(|s| s == m.len()))
}

/// The first byte of `bytes 5-9/10`.
fn range_start(range: &str) -> Option<u64> {
    range.trim().strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
