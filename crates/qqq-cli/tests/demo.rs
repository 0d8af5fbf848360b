//! `qqq demo` and what it keeps in the cache.

mod common;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use common::{Place, Run};

/// Runs of the demo with a cache of their own.
struct Demos {
    place: Place,
}

impl Demos {
    fn new() -> Self {
        Self { place: Place::new() }
    }

    fn cache(&self) -> PathBuf {
        self.place.path("cache")
    }

    fn results(&self) -> PathBuf {
        self.cache().join("qqq-demo")
    }

    fn command(&self, options: &str) -> std::process::Command {
        let mut command = self.place.command();
        command.env("QQQ_CACHE", self.cache()).args("demo --model model --json".split(' '));
        command.args(options.split_whitespace());
        command
    }

    /// Runs one; gives whether it used an earlier result, and what it has told.
    #[track_caller]
    fn run(&self, options: &str) -> (bool, String) {
        let run = Run::of(self.command(options).output().unwrap()).success();
        (run.json()["from_cache"].as_bool().unwrap(), run.stderr)
    }

    /// The directories among the results.
    fn made(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.results()).unwrap().map(|e| e.unwrap().path());
        entries.filter(|path| path.is_dir()).collect()
    }

    /// The only one.
    #[track_caller]
    fn only(&self) -> PathBuf {
        let [made] = self.made().try_into().unwrap();
        made
    }

    /// The same model in another file.
    fn renew_model(&self) {
        let weights = self.place.path("model").join("model.safetensors");
        fs::copy(&weights, self.place.path("copy")).unwrap();
        fs::rename(self.place.path("copy"), weights).unwrap();
    }
}

#[track_caller]
fn assert_same_files(a: &Path, b: &Path) {
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(a), names(b));
    for name in names(a) {
        assert!(fs::read(a.join(&name)).unwrap() == fs::read(b.join(&name)).unwrap(), "{name:?}");
    }
}

#[test]
fn the_demo_quantizes_once() {
    let demos = Demos::new();
    assert!(!demos.run("").0);
    let made = demos.only();
    assert!(demos.run("--keep mine").0);
    assert_same_files(&made, &demos.place.path("mine"));
    demos.place.run("inspect mine").success();
    let page = fs::read_to_string(demos.place.path("mine/report.html")).unwrap();
    assert!(page.contains("<h2>Outliers</h2>") && page.contains("qqq demo --model model"), "{page}");
    assert!(!demos.run("--again").0);
    assert_eq!(demos.only(), made);
    // Another model: another result, and the old one goes.
    demos.renew_model();
    assert!(!demos.run("").0);
    assert_ne!(demos.only(), made);
}

#[test]
fn only_what_a_demo_made_is_removed() {
    let demos = Demos::new();
    demos.run("");
    let made = demos.only();
    let results = demos.results();
    let foreign =
        ["0123456789abcdef/thesis.txt", "notes/thesis.txt", "0123456789abcde/quantization_report.json"];
    for file in foreign {
        fs::create_dir_all(results.join(file).parent().unwrap()).unwrap();
        fs::write(results.join(file), "precious").unwrap();
    }
    fs::write(results.join("fedcba9876543210.sha256"), "precious").unwrap();
    fs::write(results.join("fedcba9876543210"), "precious").unwrap();
    fs::create_dir_all(demos.cache().join("demo")).unwrap();
    fs::write(demos.cache().join("demo").join("thesis.txt"), "precious").unwrap();
    // Of two models that are gone one is in use: by this process.
    let used = results.join("00000000000000aa");
    fs::create_dir(&used).unwrap();
    fs::copy(made.join("quantization_report.json"), used.join("quantization_report.json")).unwrap();
    let lock = File::create(results.join("00000000000000aa.lock")).unwrap();
    lock.lock_shared().unwrap();

    demos.renew_model();
    demos.run("");
    assert!(
        !made.exists() && !made.with_extension("sha256").exists() && !made.with_extension("lock").exists()
    );
    assert!(used.exists());
    for file in foreign.iter().chain(&["fedcba9876543210", "fedcba9876543210.sha256", "../demo/thesis.txt"]) {
        assert_eq!(fs::read_to_string(results.join(file)).unwrap_or_default(), "precious", "{file}");
    }
}

#[test]
fn a_damaged_result_is_made_again_and_never_kept() {
    let demos = Demos::new();
    demos.run("");
    let made = demos.only();
    let weights = made.join("model.safetensors");
    let flip: &dyn Fn() = &|| {
        let mut bytes = fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&weights, bytes).unwrap();
    };
    let remove: &dyn Fn() = &|| fs::remove_file(made.join("tokenizer.json")).unwrap();
    let forget: &dyn Fn() = &|| fs::remove_file(made.with_extension("sha256")).unwrap();
    for (damage, says, kept) in [
        (flip, "model.safetensors is not what was written", "a"),
        (remove, "tokenizer.json is missing", "b"),
        (forget, "the SHA-256 of its files are not known", "c"),
    ] {
        damage();
        let (from_cache, told) = demos.run(&format!("--keep {kept}"));
        assert!(!from_cache && told.contains(&format!("is damaged ({says}): making it again")), "{told}");
        assert_same_files(&made, &demos.place.path(kept));
        assert_eq!(told.lines().filter(|l| l.contains("damaged")).count(), 1, "{told}");
    }
    assert!(demos.run("").0, "it is as good as any");
}

#[test]
fn what_does_not_answer_is_not_kept() {
    let demos = Demos::new();
    let template = demos.place.path("model").join("chat_template.jinja");
    fs::write(template, "{{ raise_exception('no talk') }}").unwrap();
    let run = Run::of(demos.command("--keep mine").output().unwrap()).failure(2, "no talk");
    assert!(run.json()["error"].is_object());
    assert!(!demos.place.path("mine").exists());
    assert_eq!(demos.made().len(), 1, "the next demo finds it");
}

#[test]
fn what_is_in_the_way_is_not_removed() {
    let demos = Demos::new();
    demos.run("");
    let made = demos.only();
    fs::remove_dir_all(&made).unwrap();
    fs::remove_file(made.with_extension("sha256")).unwrap();
    fs::create_dir(&made).unwrap();
    fs::write(made.join("thesis.txt"), "precious").unwrap();
    for options in ["", "--again"] {
        let run = Run::of(demos.command(options).output().unwrap()).failure(1, "is in the way");
        assert!(run.stderr.contains("hint: move it away"), "{}", run.stderr);
        assert_eq!(fs::read_to_string(made.join("thesis.txt")).unwrap(), "precious");
    }
}

/// Here this process is the other demo: it holds the lock.
#[cfg(unix)]
#[test]
fn demos_wait_for_each_other() {
    use std::{
        io::{BufRead, BufReader, Read},
        process::{Child, ChildStderr, Stdio},
    };

    use rustix::process::{Pid, Signal, kill_process};

    let demos = Demos::new();
    demos.run("");
    let made = demos.only();
    let lock = File::open(made.with_extension("lock")).unwrap();
    // Starts one, and comes back when it waits.
    let waiting = |options: &str, says: &str| -> (Child, BufReader<ChildStderr>) {
        let mut command = demos.command(options);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("Another demo ") {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "it does not wait");
        }
        assert!(line.contains(says) && line.contains("waiting until"), "{line}");
        (child, stderr)
    };
    let ended = |mut child: Child, mut stderr: BufReader<ChildStderr>| {
        let (mut stdout, mut told) = (String::new(), String::new());
        child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        stderr.read_to_string(&mut told).unwrap();
        Run { code: child.wait().unwrap().code(), stdout, stderr: told }
    };

    lock.lock().unwrap();
    let (child, stderr) = waiting("", "makes ");
    lock.unlock().unwrap();
    let run = ended(child, stderr).success();
    assert_eq!(run.json()["from_cache"], true);

    // What is in use is not made anew.
    lock.lock_shared().unwrap();
    assert!(demos.run("").0, "several use it at a time");
    let before = fs::read(made.join("quantization_report.json")).unwrap();
    let (child, stderr) = waiting("--again", "uses ");
    assert_eq!(fs::read(made.join("quantization_report.json")).unwrap(), before);
    lock.unlock().unwrap();
    assert_eq!(ended(child, stderr).success().json()["from_cache"], false);
    assert_ne!(fs::read(made.join("quantization_report.json")).unwrap(), before);

    let lock = File::open(made.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    let (child, stderr) = waiting("", "makes ");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    ended(child, stderr).failure(130, "interrupted");
}
