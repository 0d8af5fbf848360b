//! One repository of the hub, online or in the cache, with errors that say what to do.

use std::{
    cell::OnceCell,
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{
    HubOptions, Kind, Transfer,
    cache::{Known, RepoCache, files, is_commit, is_inside},
    download::{Download, retried},
    environment::Settings,
    error,
    http::{Fault, Http, escaped, header},
};
use crate::{ModelError, Result};

/// Bytes that the list of a repository's files may take.
const MAX_LIST: u64 = 64 << 20;

/// A repository at a revision.
pub(super) struct Client {
    cache: RepoCache,
    /// `None`: offline, as was asked.
    http: Option<Http>,
    /// Why the cache alone is used although nobody asked for it.
    outage: OnceCell<String>,
    repo: String,
    kind: Kind,
    revision: String,
    is_default_revision: bool,
    /// Between two attempts of a request.
    pub pause: Duration,
    progress: Option<fn(&Transfer<'_>)>,
}

/// The files of a repository at a commit.
pub(super) struct Snapshot {
    commit: String,
    directory: PathBuf,
    names: BTreeSet<String>,
}

impl Snapshot {
    /// Paths within the repository: online all that it holds, offline those in the cache.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    pub fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Where the files lie once they have been fetched.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// The hub's answer about a repository at a revision.
#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Client {
    pub fn new(settings: &Settings, kind: Kind, repo: &str, options: &HubOptions) -> Result<Self> {
        let revision = options.revision.clone().unwrap_or_else(|| "main".into());
        // It becomes part of paths in the cache and of addresses.
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if revision.is_empty() || !revision.chars().all(is_plain) || !is_inside(&revision) {
            return Err(error(format!(
                "{revision:?} is not a branch, tag or commit of a repository on the hub"
            )));
        }
        Ok(Self {
            cache: RepoCache::new(&settings.cache, kind, repo),
            http: if settings.offline { None } else { Some(Http::new(settings)?) },
            outage: OnceCell::new(),
            repo: repo.into(),
            kind,
            is_default_revision: revision == "main",
            revision,
            pause: Duration::from_millis(300),
            progress: options.progress,
        })
    }

    /// The repository as the hub names it: `owner/name`.
    pub fn id(&self) -> &str {
        &self.repo
    }

    /// The hub, unless only the cache is used.
    fn online(&self) -> Option<&Http> {
        self.http.as_ref().filter(|_| self.outage.get().is_none())
    }

    /// What to add to an error about something that is not there, where only the cache was looked into.
    pub fn incomplete(&self) -> String {
        match (&self.http, self.outage.get()) {
            (None, _) => {
                " in the cache; run once with network (without --offline and HF_HUB_OFFLINE) to fetch it"
                    .into()
            }
            (Some(_), Some(outage)) => format!(" in the cache, and {outage}"),
            (Some(_), None) => String::new(),
        }
    }

    /// The repository's files at the revision: as the hub says, or, where there is no way to it, the cache.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let Some(http) = self.online() else { return self.cached_snapshot() };
        let fault = match retried(self.pause, || self.info(http)) {
            Ok(info) => return self.listed(http, info),
            Err(fault) => fault,
        };
        let explained = self.explain(http, &fault, None);
        let cached = match self.cached_snapshot() {
            Ok(cached) => cached,
            Err(reason) if fault.is_outage() && self.has_several() => {
                return Err(error(format!("{explained}. {reason}")));
            }
            Err(_) => return Err(explained),
        };
        if !fault.is_outage() {
            return Err(error(format!("{explained}. --offline takes what is in the cache")));
        }
        tracing::warn!("{}: {fault}; taking what is in the cache", self.repo);
        // Nobody else sets it.
        let _ = self.outage.set(fault.to_string());
        Ok(cached)
    }

    fn info(&self, http: &Http) -> Result<Info, Fault> {
        let address =
            format!("/api/{}/{}/revision/{}", self.kind.plural(), self.repo, escaped(&self.revision));
        let mut response = http.get(&address, 0)?;
        let kind = header(response.headers(), "content-type").unwrap_or("of no named type").to_owned();
        let text = response.body_mut().with_config().limit(MAX_LIST).read_to_vec();
        let text = text.map_err(|e| http.fault(e, http.endpoint()))?;
        serde_json::from_slice(&text).map_err(|e| {
            Fault::Content(format!(
                "{} does not answer as a hub does ({kind}: {e}); it may be a page of a proxy or of a network that \
                 wants a login",
                http.endpoint()
            ))
        })
    }

    fn listed(&self, http: &Http, info: Info) -> Result<Snapshot> {
        let commit = info.sha;
        if !is_commit(&commit) {
            return Err(error(format!(
                "{} names the commit {commit:?} for {}, which makes no sense",
                http.endpoint(),
                self.repo
            )));
        }
        let names = info.siblings.into_iter().map(|s| s.rfilename).filter(|n| is_inside(n)).collect();
        let directory = self.cache.snapshot(&commit);
        Ok(Snapshot { commit, directory, names })
    }

    /// Whether the cache has the repository, but does not say which of its commits is meant.
    fn has_several(&self) -> bool {
        let known = self.cache.known(&self.revision, self.is_default_revision);
        matches!(known, Known::OneOf(commits) if !commits.is_empty())
    }

    fn cached_snapshot(&self) -> Result<Snapshot> {
        let (repo, revision, root) = (&self.repo, &self.revision, self.cache.root().display());
        let commit = match self.cache.known(revision, self.is_default_revision) {
            Known::Commit(commit) => commit,
            Known::Only(commit) => {
                tracing::warn!(
                    "{repo}: the cache does not say which commit {revision} is; taking the only one it has, {commit}"
                );
                commit
            }
            Known::OneOf(commits) if commits.is_empty() => return Err(self.not_cached()),
            Known::OneOf(commits) => {
                let way_out = match self.kind {
                    Kind::Model => {
                        format!("name one of those it has with --revision: {}", commits.join(", "))
                    }
                    Kind::Dataset => {
                        "run once with network (without --offline and HF_HUB_OFFLINE)".to_owned()
                    }
                };
                return Err(error(format!(
                    "{repo}: the hub's cache ({root}) does not say which commit {revision} is; {way_out}"
                )));
            }
        };
        let directory = self.cache.snapshot(&commit);
        let names = files(&directory);
        if names.is_empty() {
            return Err(self.not_cached());
        }
        Ok(Snapshot { commit, directory, names })
    }

    fn not_cached(&self) -> ModelError {
        error(format!(
            "{} at revision {} is not in the hub's cache ({}); run once with network (without --offline and \
             HF_HUB_OFFLINE), or name a local path",
            self.repo,
            self.revision,
            self.cache.root().display()
        ))
    }

    /// Local path of a file, downloaded unless the cache has it.
    pub fn file(&self, snapshot: &Snapshot, name: &str) -> Result<PathBuf> {
        let local = snapshot.directory.join(name);
        if is_inside(name) && local.exists() {
            return Ok(local);
        }
        let Some(http) = self.online().filter(|_| snapshot.has(name)) else {
            let similar: Vec<&str> = snapshot.names().filter(|n| same_extension(n, name)).collect();
            let hint = if similar.is_empty() {
                String::new()
            } else {
                format!("; there are {}", super::listed(&similar))
            };
            return Err(error(format!("{} has no file {name}{}{hint}", self.repo, self.incomplete())));
        };
        let parts: Vec<String> = name.split('/').map(escaped).collect();
        let download = Download {
            http,
            cache: &self.cache,
            // The commit rather than the branch: files of one model stay together when the branch moves.
            address: format!(
                "/{}{}/resolve/{}/{}",
                self.kind.prefix(),
                self.repo,
                snapshot.commit,
                parts.join("/")
            ),
            commit: &snapshot.commit,
            name,
            pause: self.pause,
            progress: self.progress,
        };
        download.run().map_err(|fault| self.explain(http, &fault, Some(name)))
    }

    /// Notes which commit the revision meant, for use offline.
    pub fn remember(&self, snapshot: &Snapshot) {
        if self.online().is_none() {
            return;
        }
        // The files are there, which is what was asked for; a shared cache may be read-only.
        if let Err(e) = self.cache.remember(&self.revision, &snapshot.commit) {
            tracing::warn!(
                "{}: the hub's cache does not note the commit of {}: {e}",
                self.repo,
                self.revision
            );
        }
    }

    /// What a failure means, and what to do about it.
    fn explain(&self, http: &Http, fault: &Fault, file: Option<&str>) -> ModelError {
        let Client { repo, revision, .. } = self;
        let endpoint = http.endpoint();
        let what = file.map_or_else(|| repo.clone(), |f| format!("{repo}/{f}"));
        let offline = "Without network, name a local path, or use --offline if the cache has it";
        error(match fault {
            Fault::Status { status, code, message } => {
                let reason = self.refusal(http, *status, code.as_deref(), file);
                match message {
                    Some(message) => format!("{what}: {reason} (the hub says: {message})"),
                    None => format!("{what}: {reason}"),
                }
            }
            Fault::Unreachable(_) | Fault::Proxy(_) | Fault::Tls(_) => {
                format!("{what}: cannot reach {endpoint}: {fault}. {offline}")
            }
            Fault::Timeout(_) if file.is_none() => {
                format!("{what}: cannot reach {endpoint}: {fault}. {offline}")
            }
            Fault::Timeout(_) | Fault::Lost(_) => format!(
                "{what}: {fault}, several times; check the network and run it again, which goes on where a large \
                 file's download has stopped"
            ),
            Fault::Content(reason) if file.is_some() => {
                format!("{what} at revision {revision}: {reason}. Nothing of it is kept; try again later")
            }
            Fault::Content(reason) => format!("{what}: {reason}"),
            Fault::Disk { path, source } => self.disk_trouble(&what, path, source),
        })
    }

    /// What an HTTP status means.
    fn refusal(&self, http: &Http, status: u16, code: Option<&str>, file: Option<&str>) -> String {
        let (endpoint, revision) = (http.endpoint(), &self.revision);
        let page = format!("{endpoint}/{}{}", self.kind.prefix(), self.repo);
        let token = if http.has_token() {
            "use a token that may read it (the one in use may not, or has expired)"
        } else {
            "give an access token (--token or HF_TOKEN)"
        };
        match (status, code) {
            (401 | 403, Some("GatedRepo")) => format!(
                "the repository is gated ({status}): accept its terms on {page} with your account, and {token}"
            ),
            (401, _) => format!(
                "{endpoint} refuses access (401). Either the name is mistyped, or the repository is private or gated: \
                 then accept its terms on {page}, if there are any, and {token}"
            ),
            (403, _) => format!(
                "{endpoint} refuses access (403). The repository is gated or private: accept its terms on {page} with \
                 your account, and {token}"
            ),
            (404, Some("RevisionNotFound")) => {
                format!("there is no revision {revision} on {endpoint} (404); {page} lists branches and tags")
            }
            (404, Some("EntryNotFound")) | (404, None) if file.is_some() => {
                format!(
                    "the file is not there at revision {revision} on {endpoint} (404); {page} lists what is"
                )
            }
            (404, _) => format!(
                "not found on {endpoint} at revision {revision} (404); check the spelling of name and revision on {page}"
            ),
            (407, _) => "the proxy wants a name and a password (407); put them into HTTPS_PROXY, as \
                         http://name:password@proxy:port"
                .into(),
            (429, _) => {
                format!("{endpoint} limits the rate of requests (429); wait a few minutes, or {token}")
            }
            (500.., _) => format!("{endpoint} answers with HTTP status {status}; try again later"),
            _ => format!("{endpoint} refuses the request with HTTP status {status}"),
        }
    }

    /// The cache cannot be written.
    fn disk_trouble(&self, what: &str, path: &Path, e: &io::Error) -> String {
        use io::ErrorKind as K;
        let cache = self.cache.root().display();
        let elsewhere = "set HF_HOME to another directory";
        // The system names what was asked for, not what stands in its way.
        let file = path.ancestors().find(|p| fs::metadata(p).is_ok_and(|m| !m.is_dir()));
        match (e.kind(), file) {
            (K::StorageFull | K::QuotaExceeded, _) => format!(
                "{what}: the disk of the hub's cache ({cache}) is full: {e}; free some space, or {elsewhere}"
            ),
            (K::FileTooLarge, _) => {
                format!(
                    "{what}: the file is too large for the disk of the hub's cache ({cache}): {e}; {elsewhere}"
                )
            }
            (K::PermissionDenied | K::ReadOnlyFilesystem, _) => format!(
                "{what}: the hub's cache may not be written: {}: {e}; change its permissions, or {elsewhere}",
                path.display()
            ),
            (K::NotADirectory | K::AlreadyExists, Some(file)) => format!(
                "{what}: the hub's cache cannot be in {cache}, because {} is a file; {elsewhere}",
                file.display()
            ),
            _ => {
                format!("{what}: the hub's cache cannot be written: {}: {e}; or {elsewhere}", path.display())
            }
        }
    }
}

fn same_extension(a: &str, b: &str) -> bool {
    Path::new(a).extension() == Path::new(b).extension()
}
