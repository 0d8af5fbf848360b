//! The hub's cache on disk, in the layout that its own tools have: `blobs/ETAG` hold content,
//! `snapshots/COMMIT/...` link to it under the files' names, `refs/REVISION` name commits.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Component, Path, PathBuf},
};

use super::Kind;

/// The directory of a repository in the cache.
#[derive(Clone, Debug)]
pub(super) struct RepoCache {
    root: PathBuf,
    folder: String,
}

/// What the cache says of a revision.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// The commit with this hash.
    Commit(String),
    /// Nothing says which commit it is, but there is only this one, which has no other name.
    Only(String),
    /// Nothing says which commit it is, and there are these (or none).
    OneOf(Vec<String>),
}

impl RepoCache {
    pub fn new(root: &Path, kind: Kind, repo: &str) -> Self {
        Self { root: root.into(), folder: format!("{}--{}", kind.plural(), repo.replace('/', "--")) }
    }

    /// The directory of all repositories.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join(&self.folder).join("snapshots").join(commit)
    }

    /// Content by its name, which must be one of a file.
    pub fn blob(&self, name: &str) -> PathBuf {
        self.root.join(&self.folder).join("blobs").join(name)
    }

    /// The lock of a blob, where Python's tools have theirs.
    pub fn lock(&self, blob: &str) -> PathBuf {
        self.root.join(".locks").join(&self.folder).join(format!("{blob}.lock"))
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.root.join(&self.folder).join("refs").join(revision)
    }

    /// The commit that a revision was when it was last asked for. The revision must be inside (see [`is_inside`]).
    pub fn known(&self, revision: &str, is_default: bool) -> Known {
        if let Ok(text) = fs::read_to_string(self.reference(revision))
            && is_commit(text.trim())
        {
            return Known::Commit(text.trim().to_owned());
        }
        let mut commits: Vec<String> = fs::read_dir(self.snapshot(""))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|name| is_commit(name) && !files(&self.snapshot(name)).is_empty())
            .collect();
        commits.sort();
        // A commit names its snapshot itself; its beginning does if it is long enough for no name to look like it.
        let is_hex = revision.len() >= 7 && revision.bytes().all(|b| b.is_ascii_hexdigit());
        let named: Vec<&String> =
            commits.iter().filter(|c| *c == revision || (is_hex && c.starts_with(revision))).collect();
        match (&named[..], &commits[..]) {
            ([only], _) => Known::Commit((*only).clone()),
            (_, [only]) if is_default && !self.has_name(only) => Known::Only(only.clone()),
            _ => Known::OneOf(commits),
        }
    }

    /// Whether a revision is known to be this commit.
    fn has_name(&self, commit: &str) -> bool {
        let named =
            |name: &String| fs::read_to_string(self.reference(name)).is_ok_and(|c| c.trim() == commit);
        // Some tools note that a commit is itself.
        files(&self.reference("")).iter().any(|name| name != commit && named(name))
    }

    /// Notes which commit a revision is.
    pub fn remember(&self, revision: &str, commit: &str) -> io::Result<()> {
        let path = self.reference(revision);
        if fs::read_to_string(&path).is_ok_and(|text| text == commit) || revision == commit {
            return Ok(());
        }
        let parent = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(parent)?;
        // Whoever reads it meanwhile sees the old commit or the new one, never half of it.
        let file = tempfile::NamedTempFile::new_in(parent)?;
        fs::write(file.path(), commit)?;
        open_to_others(file.path())?;
        file.persist(&path)?;
        Ok(())
    }

    /// Gives a blob a name in a snapshot.
    pub fn link(&self, blob: &str, commit: &str, name: &str) -> io::Result<PathBuf> {
        let path = self.snapshot(commit).join(name);
        if path.exists() {
            return Ok(path);
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        if path.is_symlink() {
            // It leads to content that was removed.
            fs::remove_file(&path)?;
        }
        let up = "../".repeat(2 + name.matches('/').count());
        let linked = symlink(Path::new(&format!("{up}blobs/{blob}")), &path);
        match linked {
            // Another process may have been quicker.
            Ok(()) => {}
            Err(_) if path.exists() => {}
            // No symbolic links here: another name of the same content, or the content itself.
            Err(_) => {
                let blob = self.blob(blob);
                fs::hard_link(&blob, &path).or_else(|_| fs::rename(&blob, &path))?;
            }
        }
        Ok(path)
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Temporary files are their owner's alone; a cache may be shared.
fn open_to_others(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// Whether a text can be a commit, and so part of a path.
pub(super) fn is_commit(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric())
}

/// Whether a path stays within the directory it is joined to.
pub(super) fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains('\\')
        && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
}

/// Names of all files below `directory`, relative to it.
pub(super) fn files(directory: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    list(directory, directory, &mut names);
    names
}

fn list(root: &Path, directory: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
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

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn cache() -> (tempfile::TempDir, RepoCache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(dir.path(), Kind::Model, "owner/name");
        (dir, cache)
    }

    fn add(cache: &RepoCache, commit: &str) {
        fs::create_dir_all(cache.snapshot(commit)).unwrap();
        fs::write(cache.snapshot(commit).join("config.json"), "{}").unwrap();
    }

    #[test]
    fn revisions() {
        let (_dir, cache) = cache();
        let commit = |c: &str| Known::Commit(c.into());
        assert_eq!(cache.known("main", true), Known::OneOf(vec![]));
        add(&cache, A);
        assert_eq!(cache.known("main", true), Known::Only(A.into()));
        assert_eq!(cache.known("v1", false), Known::OneOf(vec![A.into()]), "it could be any");
        assert_eq!(cache.known(A, false), commit(A));
        assert_eq!(cache.known(&A[..8], false), commit(A));
        assert_eq!(cache.known(&A[..4], false), Known::OneOf(vec![A.into()]));
        fs::create_dir_all(cache.reference("")).unwrap();
        fs::write(cache.reference(A), A).unwrap();
        assert_eq!(cache.known("main", true), Known::Only(A.into()));
        cache.remember("v1/x", A).unwrap();
        assert_eq!(cache.known("main", true), Known::OneOf(vec![A.into()]), "it is another revision");
        cache.remember("main", A).unwrap();
        cache.remember("refs/pr/1", B).unwrap();
        assert_eq!(cache.known("main", true), commit(A));
        assert_eq!(cache.known("refs/pr/1", false), commit(B));
        add(&cache, B);
        fs::write(cache.reference("main"), format!("{B}\n")).unwrap();
        assert_eq!(cache.known("main", true), commit(B));
        // What is no commit is no part of a path.
        fs::write(cache.reference("main"), "../../x").unwrap();
        assert_eq!(cache.known("main", true), Known::OneOf(vec![A.into(), B.into()]));
    }

    #[test]
    fn a_commit_is_noted_once() {
        let (_dir, cache) = cache();
        cache.remember("main", A).unwrap();
        let first = fs::metadata(cache.reference("main")).unwrap().modified().unwrap();
        cache.remember("main", A).unwrap();
        assert_eq!(fs::metadata(cache.reference("main")).unwrap().modified().unwrap(), first);
        cache.remember("main", B).unwrap();
        assert_eq!(fs::read_to_string(cache.reference("main")).unwrap(), B);
        cache.remember(A, A).unwrap();
        assert!(!cache.reference(A).exists(), "a commit needs no note");
    }

    #[test]
    fn links_lead_to_blobs_from_every_depth() {
        let (_dir, cache) = cache();
        fs::create_dir_all(cache.blob("")).unwrap();
        fs::write(cache.blob("etag"), "content").unwrap();
        for name in ["f", "a/f", "a/b/f"] {
            let path = cache.link("etag", A, name).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "content");
            cache.link("etag", A, name).unwrap();
        }
        // Content that was removed: the old link gives way.
        fs::remove_file(cache.blob("etag")).unwrap();
        fs::write(cache.blob("new"), "more").unwrap();
        assert_eq!(fs::read_to_string(cache.link("new", A, "f").unwrap()).unwrap(), "more");
        assert_eq!(files(&cache.snapshot(A)).into_iter().collect::<Vec<_>>(), ["f"]);
    }
}
