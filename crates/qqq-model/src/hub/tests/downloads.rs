//! Connections that break, wrong content, caches of all kinds.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::Ordering::SeqCst,
};

use qqq_formats::lock::{Attempt, FileLock};

use super::{LONG, hub, names, nowhere, offline, options};
use crate::hub::{
    HubOptions, Kind, Transfer, model_files,
    tests::server::{Hub, MAIN, OLD, client, sha256},
};

const REPO: &str = "hub/models--owner--whole";

fn fetch(hub: &Hub, cache: &Path) -> Result<PathBuf, String> {
    hub.model(cache, "owner/whole", None, &options()).map_err(|e| e.to_string())
}

fn weights(dir: &Path) -> String {
    fs::read_to_string(dir.join("model.safetensors")).unwrap()
}

/// Where the weights lie before they are whole.
fn part(cache: &Path) -> PathBuf {
    cache.join(REPO).join("blobs").join(format!("{}.incomplete", sha256(LONG.as_bytes())))
}

#[test]
fn a_connection_that_breaks_is_taken_up_again() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    hub.faults.cut.store(3, SeqCst);
    assert_eq!(weights(&fetch(&hub, cache.path()).unwrap()), LONG);
    let blobs = cache.path().join(REPO).join("blobs");
    assert_eq!(names(&blobs).len(), 2, "{:?}", names(&blobs));
    assert!(names(&blobs).contains(&sha256(LONG.as_bytes())));
}

#[test]
fn a_server_that_takes_no_ranges_starts_over() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    hub.faults.cut.store(1, SeqCst);
    hub.faults.whole.store(5, SeqCst);
    assert_eq!(weights(&fetch(&hub, cache.path()).unwrap()), LONG);
}

#[test]
fn a_server_that_is_busy_is_asked_again() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    hub.faults.busy.store(2, SeqCst);
    assert_eq!(weights(&fetch(&hub, cache.path()).unwrap()), LONG);
    let cache = tempfile::tempdir().unwrap();
    hub.faults.busy.store(100, SeqCst);
    let e = fetch(&hub, cache.path()).unwrap_err();
    assert!(e.contains("503") && e.contains("later"), "{e}");
}

#[test]
fn a_lost_connection_is_not_a_full_disk() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    hub.faults.cut.store(1000, SeqCst);
    let e = fetch(&hub, cache.path()).unwrap_err();
    assert!(e.contains("lost") || e.contains("ended after"), "{e}");
    assert!(e.contains("model.safetensors") && e.contains("network"), "{e}");
    assert!(!e.contains("space") && !e.contains("HF_HOME"), "{e}");
    assert!(!cache.path().join(REPO).join("snapshots").join(MAIN).join("model.safetensors").exists());
    // What came is not fetched again.
    let length = fs::metadata(part(cache.path())).unwrap().len();
    assert!(length > 0);
    hub.faults.cut.store(0, SeqCst);
    assert_eq!(weights(&fetch(&hub, cache.path()).unwrap()), LONG);
}

#[test]
fn a_damaged_beginning_is_found_and_fetched_again() {
    for damage in ["XXXX", &format!("{LONG} and more"), &"X".repeat(LONG.len())] {
        let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
        fs::create_dir_all(part(cache.path()).parent().unwrap()).unwrap();
        fs::write(part(cache.path()), damage).unwrap();
        assert_eq!(weights(&fetch(&hub, cache.path()).unwrap()), LONG, "{damage}");
    }
}

#[test]
fn wrong_content_is_refused_and_not_kept() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    hub.faults.page.store(100, SeqCst);
    let e = fetch(&hub, cache.path()).unwrap_err();
    assert!(e.contains("17 bytes (text/html)") && e.contains(&format!("{} bytes", LONG.len())), "{e}");
    hub.faults.page.store(0, SeqCst);
    hub.faults.wrong.store(100, SeqCst);
    let e = fetch(&hub, cache.path()).unwrap_err();
    assert!(e.contains("SHA-256") && e.contains(&sha256(LONG.as_bytes())), "{e}");
    assert!(!part(cache.path()).exists());
    // Once is no harm: neither a page, also in the middle, nor a byte that changed on the way.
    hub.faults.page.store(1, SeqCst);
    hub.faults.wrong.store(1, SeqCst);
    assert_eq!(weights(&fetch(&hub, cache.path()).unwrap()), LONG);
}

#[test]
fn content_that_is_here_is_not_fetched_for_another_revision() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    fetch(&hub, cache.path()).unwrap();
    hub.faults.busy.store(1000, SeqCst);
    let other = HubOptions { revision: Some("refs/pr/1".into()), ..options() };
    let dir = hub.model(cache.path(), "owner/whole", None, &other).unwrap();
    assert!(dir.ends_with(OLD));
    assert_eq!(weights(&dir), LONG);
    let offline = HubOptions { offline: true, ..other };
    assert_eq!(hub.model(cache.path(), "owner/whole", None, &offline).unwrap(), dir);
    // Content that a full disk has cut short is.
    hub.faults.busy.store(0, SeqCst);
    let blob = cache.path().join(REPO).join("blobs").join(sha256(LONG.as_bytes()));
    fs::write(&blob, "short").unwrap();
    fs::remove_dir_all(cache.path().join(REPO).join("snapshots")).unwrap();
    assert_eq!(weights(&fetch(&hub, cache.path()).unwrap()), LONG);
}

#[test]
fn servers_without_head_are_asked_for_the_content() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    hub.faults.no_head.store(1000, SeqCst);
    assert_eq!(weights(&fetch(&hub, cache.path()).unwrap()), LONG);
}

#[test]
fn several_at_once_fetch_a_file_once() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| fetch(&hub, cache.path()))).collect();
        for run in runs {
            assert_eq!(weights(&run.join().unwrap().unwrap()), LONG);
        }
    });
    let log = hub.log.lock().unwrap();
    let gets = log.iter().filter(|(m, path, _)| m == "GET" && path.ends_with("model.safetensors"));
    assert_eq!(gets.count(), 1);
}

#[test]
fn another_process_is_waited_for_and_a_dead_one_is_not() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let locks = cache.path().join("hub/.locks/models--owner--whole");
    fs::create_dir_all(&locks).unwrap();
    let lock = locks.join(format!("{}.lock", sha256(LONG.as_bytes())));
    fs::write(&lock, "process 1 on elsewhere\n").unwrap();
    fetch(&hub, cache.path()).unwrap();

    fs::remove_dir_all(cache.path().join(REPO)).unwrap();
    let Attempt::Taken(held) = FileLock::attempt(&lock).unwrap() else { panic!("nobody has it") };
    std::thread::scope(|scope| {
        let run = scope.spawn(|| fetch(&hub, cache.path()));
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert!(!run.is_finished());
        drop(held);
        assert_eq!(weights(&run.join().unwrap().unwrap()), LONG);
    });
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let (hub, place) = (hub(), tempfile::tempdir().unwrap());
    let file = place.path().join("file");
    fs::write(&file, "").unwrap();
    let e = fetch(&hub, &file).unwrap_err();
    assert!(e.contains(&format!("because {} is a file", file.display())) && e.contains("HF_HOME"), "{e}");
    // Not even root makes folders there.
    if cfg!(target_os = "linux") {
        let e = fetch(&hub, Path::new("/proc")).unwrap_err();
        assert!(e.contains("/proc") && e.contains("HF_HOME") && !e.contains("space"), "{e}");
    }
}

#[test]
fn without_a_way_to_the_hub_the_cache_is_taken() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let dir = fetch(&hub, cache.path()).unwrap();
    let ask = |endpoint: &str, repo: &str| {
        model_files(&client(endpoint, cache.path(), Kind::Model, repo, &options()), None)
            .map_err(|e| e.to_string())
    };
    assert_eq!(ask(&nowhere(), "owner/whole").unwrap(), dir);
    // `.invalid` is a name that nobody can have (RFC 2606).
    assert_eq!(ask("http://hub.invalid", "owner/whole").unwrap(), dir);
    // A page that wants a login, a server that is down.
    for repo in ["portal", "broken", "limited"] {
        let copy = cache.path().join(format!("hub/models--owner--{repo}"));
        fs::create_dir_all(copy.join("snapshots").join(MAIN)).unwrap();
        fs::write(copy.join("snapshots").join(MAIN).join("config.json"), "{}").unwrap();
        fs::write(copy.join("snapshots").join(MAIN).join("model.safetensors"), "w").unwrap();
        assert!(ask(&hub.endpoint, &format!("owner/{repo}")).unwrap().ends_with(MAIN), "{repo}");
    }
    // Not cached: the network is what is wrong.
    let e = ask(&nowhere(), "owner/sharded").unwrap_err();
    assert!(e.contains("cannot reach"), "{e}");
    // Half of it cached: both are said.
    fs::remove_file(dir.join("model.safetensors")).unwrap();
    let e = ask(&nowhere(), "owner/whole").unwrap_err();
    assert!(e.contains("no safetensors") && e.contains("refuse"), "{e}");
    // A clear no is no outage.
    let copy = cache.path().join("hub/models--owner--private/snapshots").join(MAIN);
    fs::create_dir_all(&copy).unwrap();
    fs::write(copy.join("config.json"), "{}").unwrap();
    let e = ask(&hub.endpoint, "owner/private").unwrap_err();
    assert!(e.contains("401") && e.contains("--offline takes"), "{e}");
}

#[test]
fn caches_that_were_staged_by_hand() {
    let cache = tempfile::tempdir().unwrap();
    let repo = cache.path().join(REPO);
    let add = |commit: &str| {
        fs::create_dir_all(repo.join("snapshots").join(commit)).unwrap();
        fs::write(repo.join("snapshots").join(commit).join("config.json"), "{}").unwrap();
        fs::write(repo.join("snapshots").join(commit).join("model.safetensors"), "w").unwrap();
    };
    let ask = |options: &HubOptions| {
        model_files(&client("http://unused", cache.path(), Kind::Model, "owner/whole", options), None)
            .map_err(|e| e.to_string())
    };
    add(MAIN);
    assert!(ask(&offline()).unwrap().ends_with(MAIN), "the only snapshot");
    let v1 = HubOptions { revision: Some("v1".into()), ..offline() };
    assert!(ask(&v1).unwrap_err().contains("which commit v1 is"));
    add(OLD);
    let e = ask(&offline()).unwrap_err();
    assert!(e.contains("--revision") && e.contains(MAIN) && e.contains(OLD), "{e}");
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), format!("{OLD}\n")).unwrap();
    assert!(ask(&offline()).unwrap().ends_with(OLD));
}

#[test]
fn progress_ends_at_the_size() {
    static SEEN: std::sync::Mutex<Vec<(String, u64, Option<u64>)>> = std::sync::Mutex::new(Vec::new());
    fn note(t: &Transfer<'_>) {
        SEEN.lock().unwrap().push((t.file.to_owned(), t.done, t.size));
    }
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let options = HubOptions { progress: Some(note), ..options() };
    hub.model(cache.path(), "owner/whole", None, &options).unwrap();
    let size = LONG.len() as u64;
    assert_eq!(SEEN.lock().unwrap().last(), Some(&("model.safetensors".to_owned(), size, Some(size))));
}
