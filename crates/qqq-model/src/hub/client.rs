//! One repository of the hub, online or in the cache, with errors that say what to do.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{Api, ApiBuilder, ApiError},
};

use super::{HubOptions, error};
use crate::{ModelError, Result};

const HUB: &str = "https://huggingface.co";

/// A repository at a revision.
pub(super) struct Client {
    cache: Cache,
    /// `None`: offline.
    api: Option<Api>,
    endpoint: String,
    repo: String,
    kind: RepoType,
    revision: String,
    has_token: bool,
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

impl Client {
    /// As the environment says: `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`.
    pub fn from_env(kind: RepoType, repo: &str, options: &HubOptions) -> Result<Self> {
        let set = |name: &str| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
        let mut options = options.clone();
        options.token = options.token.or_else(|| set("HF_TOKEN"));
        options.offline |=
            set("HF_HUB_OFFLINE").is_some_and(|v| !["0", "false", "no", "off"].contains(&&*v.to_lowercase()));
        // hf-hub gives up without a home directory; so say what it needs before it is asked.
        if set("HF_HOME").is_none() && set("HOME").is_none() && set("USERPROFILE").is_none() {
            return Err(error(
                "there is no home directory for the hub's cache; set HF_HOME to a directory".into(),
            ));
        }
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| HUB.into());
        Self::new(Cache::from_env(), &endpoint, kind, repo, &options)
    }

    pub fn new(
        cache: Cache,
        endpoint: &str,
        kind: RepoType,
        repo: &str,
        options: &HubOptions,
    ) -> Result<Self> {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let token = options.token.clone().or_else(|| cache.token());
        let has_token = token.is_some();
        let api = if options.offline {
            None
        } else {
            let api = ApiBuilder::from_cache(cache.clone())
                .with_endpoint(endpoint.clone())
                .with_token(token)
                .with_retries(3)
                .with_user_agent("qqq", env!("CARGO_PKG_VERSION"))
                .build()
                .map_err(|e| error(format!("cannot set up a client for {endpoint}: {e}")))?;
            Some(api)
        };
        let revision = options.revision.clone().unwrap_or_else(|| "main".into());
        // It becomes part of paths in the cache and of addresses.
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if revision.is_empty() || !revision.chars().all(is_plain) || !is_inside(&revision) {
            return Err(error(format!(
                "{revision:?} is not a branch, tag or commit of a repository on the hub"
            )));
        }
        Ok(Self { cache, api, endpoint, repo: repo.into(), kind, revision, has_token })
    }

    /// `owner/name`.
    pub fn id(&self) -> &str {
        &self.repo
    }

    fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repo.clone(), self.kind, revision.into())
    }

    /// What to add to an error about something that is not there, offline.
    pub fn incomplete(&self) -> String {
        match self.api {
            Some(_) => String::new(),
            None => " in the cache; run once with network (without --offline and HF_HUB_OFFLINE) to fetch it"
                .into(),
        }
    }

    /// The repository's files at the revision.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let Some(api) = &self.api else { return self.cached_snapshot() };
        let info = api.repo(self.at(&self.revision)).info().map_err(|e| self.explain(e, None))?;
        let commit = info.sha;
        if commit.is_empty() || !commit.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(error(format!(
                "{} names the commit {commit:?} for {}, which makes no sense",
                self.endpoint, self.repo
            )));
        }
        let names = info.siblings.into_iter().map(|s| s.rfilename).filter(|n| is_inside(n)).collect();
        let directory = self.cache.repo(self.at(&commit)).pointer_path(&commit);
        Ok(Snapshot { commit, directory, names })
    }

    fn cached_snapshot(&self) -> Result<Snapshot> {
        let repo = self.cache.repo(self.at(&self.revision));
        let root = repo.pointer_path("");
        let reference = root.join("../refs").join(&self.revision);
        let commit = match std::fs::read_to_string(&reference) {
            Ok(commit) => commit.trim().to_owned(),
            // A commit names its snapshot itself.
            Err(_) => self.revision.clone(),
        };
        let directory = repo.pointer_path(&commit);
        let mut names = BTreeSet::new();
        if is_inside(&commit) {
            list(&directory, &directory, &mut names);
        }
        if names.is_empty() {
            return Err(error(format!(
                "{} at revision {} is not in the hub's cache ({}); run once with network (without --offline and \
                 HF_HUB_OFFLINE), or name a local path",
                self.repo,
                self.revision,
                self.cache.path().display()
            )));
        }
        Ok(Snapshot { commit, directory, names })
    }

    /// Local path of a file, downloaded unless the cache has it.
    pub fn file(&self, snapshot: &Snapshot, name: &str) -> Result<PathBuf> {
        let local = snapshot.directory.join(name);
        if is_inside(name) && local.exists() {
            return Ok(local);
        }
        let Some(api) = self.api.as_ref().filter(|_| snapshot.has(name)) else {
            let similar: Vec<&str> = snapshot.names().filter(|n| same_extension(n, name)).collect();
            let hint = if similar.is_empty() {
                String::new()
            } else {
                format!("; there are {}", similar.join(", "))
            };
            return Err(error(format!("{} has no file {name}{}{hint}", self.repo, self.incomplete())));
        };
        // The commit rather than the branch: files of one model stay together when the branch moves.
        api.repo(self.at(&snapshot.commit)).download(name).map_err(|e| self.explain(e, Some(name)))
    }

    /// Notes which commit the revision meant, for use offline.
    pub fn remember(&self, snapshot: &Snapshot) -> Result<()> {
        if self.api.is_none() {
            return Ok(());
        }
        self.cache
            .repo(self.at(&self.revision))
            .create_ref(&snapshot.commit)
            .map_err(|e| self.cache_trouble(&e))
    }

    fn cache_trouble(&self, e: &std::io::Error) -> ModelError {
        error(format!(
            "{}: the hub's cache in {} cannot be written: {e}; free some space, or set HF_HOME to another directory",
            self.repo,
            self.cache.path().display()
        ))
    }

    /// What a failed request means, and what to do about it.
    fn explain(&self, e: ApiError, file: Option<&str>) -> ModelError {
        let Client { repo, revision, endpoint, .. } = self;
        let what = file.map_or_else(|| repo.clone(), |f| format!("{repo}/{f}"));
        let page = match self.kind {
            RepoType::Dataset => format!("{endpoint}/datasets/{repo}"),
            RepoType::Model | RepoType::Space => format!("{endpoint}/{repo}"),
        };
        let token = if self.has_token {
            "use a token that may read it (the one in use may not, or has expired)"
        } else {
            "give an access token (--token or HF_TOKEN)"
        };
        let request = match e {
            ApiError::RequestError(e) => *e,
            ApiError::TooManyRetries(inner) => return self.explain(*inner, file),
            ApiError::IoError(e) => return self.cache_trouble(&e),
            ApiError::LockAcquisition(path) => {
                return error(format!(
                    "{what}: another process is downloading it; wait for that one, or remove {} if there is none",
                    path.display()
                ));
            }
            ApiError::InvalidResume => {
                return error(format!(
                    "{what}: the partial download in {} is larger than the file; remove its .part files there and \
                     try again",
                    self.cache.repo(self.at(revision)).blob_path("").display()
                ));
            }
            other => return error(format!("{what}: {endpoint} does not answer as a hub does: {other}")),
        };
        error(match request {
            ureq::Error::StatusCode(401) => format!(
                "{what}: {endpoint} refuses access (401). Either the name is mistyped, or the repository is private or \
                 gated: then accept its terms on {page}, if there are any, and {token}"
            ),
            ureq::Error::StatusCode(403) => format!(
                "{what}: {endpoint} refuses access (403). The repository is gated or private: accept its terms on \
                 {page} with your account, and {token}"
            ),
            ureq::Error::StatusCode(404) => format!(
                "{what}: not found on {endpoint} at revision {revision} (404); check the spelling of name and \
                 revision on {page}"
            ),
            ureq::Error::StatusCode(429) => {
                format!(
                    "{what}: {endpoint} limits the rate of requests (429); wait a few minutes, or {token}"
                )
            }
            ureq::Error::StatusCode(status) => {
                format!("{what}: {endpoint} answers with HTTP status {status}; try again later")
            }
            other => format!(
                "{what}: cannot reach {endpoint}: {other}. Without network, name a local path, or use --offline if \
                 the cache has it"
            ),
        })
    }
}

/// Whether a path stays within the directory it is joined to.
fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains('\\')
        && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
}

fn same_extension(a: &str, b: &str) -> bool {
    Path::new(a).extension() == Path::new(b).extension()
}

/// Names of all files below `directory`, relative to `root`.
fn list(root: &Path, directory: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            list(root, &path, names);
        } else if path.exists()
            && let Some(name) = path.strip_prefix(root).ok().and_then(Path::to_str)
        {
            names.insert(name.replace('\\', "/"));
        }
    }
}
