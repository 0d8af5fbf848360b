//! Files that change while they are open.

use std::{fs, io::Write, time::Duration};

use super::*;

pub(super) fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("input");
    fs::write(&path, text).unwrap();
    (dir, path)
}

/// Writes into the file itself; the time is set, for two writes may fall into one tick of the clock.
pub(super) fn overwrite(path: &Path, text: &str) {
    let later = fs::metadata(path).unwrap().modified().unwrap() + Duration::from_nanos(1);
    let mut file = File::options().write(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.set_modified(later).unwrap();
}

/// Waits until the clock of the file system shows a change of this file's status.
#[cfg(unix)]
fn wait_for_a_tick(path: &Path) {
    use std::os::unix::fs::MetadataExt;
    let status = |path: &Path| {
        let metadata = fs::metadata(path).unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    };
    let clock = path.with_extension("clock");
    while {
        fs::write(&clock, "").unwrap();
        status(&clock) <= status(path)
    } {}
}

/// Writes into the file itself, and sets the time back.
#[cfg(unix)]
pub(super) fn overwrite_unnoticed(path: &Path) {
    wait_for_a_tick(path);
    let before = fs::metadata(path).unwrap().modified().unwrap();
    let mut file = File::options().write(true).open(path).unwrap();
    file.write_all(b"x").unwrap();
    file.set_modified(before).unwrap();
}

/// Leaves content and time of modification alone.
#[cfg(unix)]
pub(super) fn touch_status(path: &Path) {
    wait_for_a_tick(path);
    let other_name = path.with_extension("link");
    fs::hard_link(path, &other_name).unwrap();
    fs::remove_file(other_name).unwrap();
}

fn changed<T>(result: Result<T>) -> String {
    match result {
        Err(FormatError::Changed { path, what }) => format!("{}: {what}", path.display()),
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("no error"),
    }
}

#[test]
fn reads_by_place() {
    let (_dir, path) = written("0123456789");
    let file = InputFile::open(&path).unwrap();
    let mut out = [0; 4];
    file.read_at(3, &mut out).unwrap();
    assert_eq!(&out, b"3456");
    assert_eq!(file.read().unwrap(), b"0123456789");
    assert!(matches!(file.read_at(7, &mut out), Err(FormatError::Io { .. })), "beyond the end");
}

#[test]
fn truncated_grown_and_overwritten_files_are_told_apart() {
    let truncate: fn(&Path) = |p| File::options().write(true).open(p).unwrap().set_len(4).unwrap();
    let grow: fn(&Path) = |p| overwrite(p, "0123456789ab");
    let rewrite: fn(&Path) = |p| overwrite(p, "x");
    for (change, says) in [
        (truncate, "from 10 to 4 bytes"),
        (grow, "grew from 10 to 12 bytes"),
        (rewrite, "still has 10 bytes, but its time"),
    ] {
        let (_dir, path) = written("0123456789");
        let file = InputFile::open(&path).unwrap();
        file.check().unwrap();
        change(&path);
        for message in [
            changed(file.check()),
            changed(file.read_at(0, &mut [0; 2])),
            changed(file.read_at(6, &mut [0; 4])),
        ] {
            assert!(message.contains(says) && message.contains("input"), "{message}");
        }
    }
}

/// As `touch -d` and `rsync --times` do, and on the other side `chmod`, `ln` and renaming.
#[cfg(unix)]
#[test]
fn where_the_time_is_the_old_one_the_content_counts() {
    let opened = || {
        let (dir, path) = written("0123456789");
        let file = InputFile::open(&path).unwrap();
        file.read_at(0, &mut [0; 4]).unwrap();
        (dir, path, file)
    };
    let (_dir, path, file) = opened();
    overwrite_unnoticed(&path);
    for message in [changed(file.check()), changed(file.read_at(6, &mut [0; 4]))] {
        assert!(message.contains("what was read of it is not in it any more"), "{message}");
    }
    // What was not read yet may be anything: nothing of the old content is in use.
    let (_dir, path, file) = opened();
    let late = InputFile::open(&path).unwrap();
    late.read_at(4, &mut [0; 4]).unwrap();
    overwrite_unnoticed(&path);
    let mut out = [0; 2];
    late.read_at(0, &mut out).unwrap();
    assert_eq!(&out, b"x1");
    changed(file.check());

    let (_dir, path, file) = opened();
    touch_status(&path);
    file.check().unwrap();
    touch_status(&path);
    file.read_at(6, &mut [0; 4]).unwrap();
    // The status that was looked into is no excuse for the next.
    overwrite_unnoticed(&path);
    changed(file.check());

    // What others read of it is not known.
    let (_dir, path, file) = opened();
    let _theirs = file.handle().unwrap();
    file.check().unwrap();
    touch_status(&path);
    assert!(changed(file.check()).contains("cannot be compared"));
}

#[cfg(unix)]
#[test]
fn threads_agree_on_what_has_changed() {
    let text = "0123456789".repeat(1000);
    let (_dir, path) = written(&text);
    let file = InputFile::open(&path).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (file, text) = (&file, text.as_bytes());
            scope.spawn(move || {
                for round in 0..500 {
                    let at = (thread * 577 + round * 131) % 9000;
                    let mut out = [0; 1000];
                    file.read_at(at as u64, &mut out).unwrap();
                    assert_eq!(out, text[at..at + 1000]);
                }
            });
        }
        for _ in 0..5 {
            touch_status(&path);
        }
    });
    overwrite_unnoticed(&path);
    changed(file.check());
}

#[test]
fn a_file_that_takes_the_name_is_another_one() {
    let (dir, path) = written("old");
    let inputs = Inputs::default();
    assert_eq!(inputs.read(&path).unwrap(), b"old");
    assert_eq!(inputs.replaced(), [] as [PathBuf; 0]);
    fs::write(dir.path().join("new"), "newer").unwrap();
    fs::rename(dir.path().join("new"), &path).unwrap();
    inputs.check().unwrap();
    assert_eq!(inputs.read(&path).unwrap(), b"old", "as it was the first time");
    assert_eq!(inputs.replaced(), if cfg!(unix) { vec![path.clone()] } else { vec![] });
    fs::remove_file(&path).unwrap();
    inputs.check().unwrap();
    assert_eq!(inputs.replaced(), if cfg!(unix) { vec![path.clone()] } else { vec![] });
    assert_eq!(inputs.read_if_there(&path).unwrap().as_deref(), Some(&b"old"[..]));
    assert_eq!(inputs.read_if_there(&dir.path().join("none")).unwrap(), None);
}

#[test]
fn all_inputs_are_watched() {
    let (dir, path) = written("one");
    let other = dir.path().join("other");
    fs::write(&other, "two").unwrap();
    let inputs = Inputs::default();
    inputs.read(&path).unwrap();
    inputs.read(&other).unwrap();
    inputs.check().unwrap();
    overwrite(&other, "six");
    assert!(changed(inputs.check()).contains("other"));
}

/// The memory of a process has no byte at address 0: reading there is an error of the device, as on a disk that fails.
#[cfg(target_os = "linux")]
#[test]
fn errors_of_the_device_name_the_file() {
    let file = InputFile::open(Path::new("/proc/self/mem")).unwrap();
    match file.read_at(0, &mut [0; 8]) {
        Err(e @ FormatError::Io { .. }) => assert!(e.to_string().starts_with("/proc/self/mem: "), "{e}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_are_known_again_by_their_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let print = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let inputs = Inputs::default();
        inputs.open(&path).unwrap();
        inputs.prints().unwrap().remove(0)
    };
    let mut bytes: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(i) >> 5) as u8).collect();
    let first = print(&bytes);
    assert_eq!((first.name.as_str(), first.bytes), ("model.safetensors", 300_000));
    assert!(first.modified.is_some());
    assert_eq!(print(&bytes).ends, first.ends);
    for place in [0, 60_000, 299_999] {
        bytes[place] ^= 1;
        assert_ne!(print(&bytes).ends, first.ends, "{place}");
        bytes[place] ^= 1;
    }
    for short in [&b""[..], b"x"] {
        assert_eq!(print(short).bytes, short.len() as u64);
    }
}
