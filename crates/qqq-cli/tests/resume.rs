//! Runs that were killed or interrupted and are gone on with.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{Place, Run, TinyModel};
use serde_json::{Value, json};

/// Blocks of the model: enough that kills fall between them.
const LAYERS: usize = 12;
const LINE: &str = "quantize model --calibration text.txt --windows 50 --window 128";

/// A model of some blocks, which shards of a few tensors would not change.
fn place() -> Place {
    let place = Place::new();
    fs::remove_dir_all(place.path("model")).unwrap();
    let mut model = TinyModel::new();
    model.config["num_hidden_layers"] = json!(LAYERS);
    let blocks: Vec<_> =
        model.tensors.iter().filter(|(name, ..)| name.contains(".layers.1.")).cloned().collect();
    for i in 2..LAYERS {
        let renamed = blocks.iter().cloned().enumerate().map(|(j, (name, shape, mut values))| {
            // No block is like another.
            let places = (i * 7 + j) % values.len();
            values.rotate_left(places);
            (name.replace(".layers.1.", &format!(".layers.{i}.")), shape, values)
        });
        model.tensors.extend(renamed);
    }
    model.write(&place.path("model"));
    place
}

/// All files of a checkpoint and its report, without the times that they have.
fn content(out: &Path) -> (BTreeMap<String, Vec<u8>>, Value) {
    let mut files = BTreeMap::new();
    let mut report = Value::Null;
    for entry in fs::read_dir(out).unwrap() {
        let entry = entry.unwrap();
        let bytes = fs::read(entry.path()).unwrap();
        match entry.file_name().into_string().unwrap() {
            name if name == "quantization_report.json" => report = serde_json::from_slice(&bytes).unwrap(),
            name if name == "README.md" => {
                let card = String::from_utf8(bytes).unwrap();
                let lines = card.lines().filter(|line| !line.starts_with("| Time to quantize |"));
                files.insert(name, lines.collect::<Vec<_>>().join("\n").into_bytes());
            }
            name if name == "report.html" => {
                let page = String::from_utf8(bytes).unwrap();
                files.insert(name, without_times(&page).into_bytes());
            }
            name => drop(files.insert(name, bytes)),
        }
    }
    for key in ["timings", "peak_memory", "run"] {
        report.as_object_mut().unwrap().remove(key).unwrap();
    }
    (files, report)
}

/// A page without what changes from run to run: the command, and what it took.
fn without_times(page: &str) -> String {
    let mut page = page.to_owned();
    let between = [
        ("<th scope=\"row\">time</th><td>", "</td>"),
        ("<th scope=\"row\">memory</th><td>", "</td>"),
        ("<pre><code>qqq ", "</code>"),
    ];
    for (begin, end) in between {
        let from = page.find(begin).unwrap_or_else(|| panic!("no {begin}: {page}")) + begin.len();
        let to = from + page[from..].find(end).unwrap();
        page.replace_range(from..to, "");
    }
    page
}

#[track_caller]
fn assert_same(place: &Place, a: &str, b: &str) {
    let ((a_files, a_report), (b_files, b_report)) = (content(&place.path(a)), content(&place.path(b)));
    assert_eq!(a_files.keys().collect::<Vec<_>>(), b_files.keys().collect::<Vec<_>>());
    assert_eq!(a_report, b_report);
    for (name, bytes) in &a_files {
        let (a, b) = (String::from_utf8_lossy(bytes), String::from_utf8_lossy(&b_files[name]));
        let line = a.lines().zip(b.lines()).find(|(a, b)| a != b);
        assert!(b_files[name] == *bytes, "{name} differs: {line:?}");
    }
}

fn start(place: &Place, line: &str) -> Child {
    let mut command = place.command();
    command.args(line.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn staging(place: &Place) -> Option<PathBuf> {
    let name = place.names().into_iter().find(|name| name.starts_with(".out.partial-"))?;
    Some(place.path(&name))
}

/// Blocks that are kept now.
fn blocks_kept(place: &Place) -> usize {
    let Some(state) = staging(place).and_then(|dir| fs::read(dir.join(".resume")).ok()) else { return 0 };
    let text = String::from_utf8_lossy(&state);
    let (_, after) = text.split_once("\"blocks\":[").unwrap();
    after.split_once(',').unwrap().0.parse().unwrap()
}

/// Waits until something is so; `false`: the run was done before.
fn wait(place: &Place, child: &mut Child, until: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !until() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it keeps nothing: {:?}", place.names());
        thread::sleep(Duration::from_millis(1));
    }
    true
}

/// Kills a run after some time, and the one that goes on with it, and so on, at ten random moments.
fn killed(line: &str) {
    let place = place();
    let line = format!("{line} -o");
    let begun = Instant::now();
    place.run(&format!("{line} whole")).success();
    let whole = begun.elapsed();
    // The moments differ from run to run, whatever the seed: what must hold, holds for all.
    let mut random = qqq_testing::Random(u64::from(std::process::id()));
    let mut resumed = 0;
    for _ in 0..10 {
        let mut child = start(&place, &format!("{line} out --resume"));
        let before = blocks_kept(&place);
        // From there on at any moment; whatever it is that it does then.
        let is_kept = wait(&place, &mut child, || blocks_kept(&place) > before);
        thread::sleep(whole * random.int(0, 40) as u32 / 100);
        child.kill().unwrap();
        let run = Run::of(child.wait_with_output().unwrap());
        assert!(is_kept || run.code == Some(0), "{}", run.stderr);
        resumed += usize::from(run.stderr.contains("going on behind block"));
        if place.path("out").exists() {
            // It was done before the kill: once more from the beginning.
            assert_same(&place, "whole", "out");
            fs::remove_dir_all(place.path("out")).unwrap();
        }
    }
    let last = place.run(&format!("{line} out --resume")).success();
    resumed += usize::from(last.stderr.contains("going on behind block"));
    assert_same(&place, "whole", "out");
    assert!(resumed > 0, "no run of ten has gone on with another");
    assert_eq!(place.names(), ["model", "out", "text.txt", "whole"]);
}

/// Starts a run, and kills it when it has kept a block.
fn kill_when_kept(place: &Place, line: &str) {
    kill_when(place, line, || blocks_kept(place) > 0);
}

/// Starts a run, and kills it when something is so.
fn kill_when(place: &Place, line: &str, until: impl Fn() -> bool) {
    let mut child = start(place, line);
    assert!(wait(place, &mut child, until));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn ten_kills_leave_the_same_bytes() {
    killed(LINE);
}

#[test]
fn and_with_smoothing_and_float_propagation() {
    killed(&format!("{LINE} --transform smooth --smooth-tokens 64 --propagation float --group-size 32"));
}

#[test]
fn and_with_a_float_model_beside() {
    killed(&format!("{LINE} --error-correction 0"));
}

#[test]
fn and_with_samples_which_are_not_made_again() {
    killed("quantize model --calibration self --windows 32 --window 128 --group-size channel");
}

#[test]
fn and_with_an_int8_head_which_comes_last() {
    killed(&format!("{LINE} --head int8 --error-correction 0"));
}

#[test]
fn and_with_a_budget_which_is_spent_once() {
    killed(&format!("{LINE} --budget 5.5"));
}

#[test]
fn another_budget_is_another_run() {
    let place = place();
    kill_when_kept(&place, &format!("{LINE} --budget 5.5 -o out"));
    for (other, says) in
        [(" --budget 6", "the budget was 5.5 bits per weight, and is 6 bits per weight"), ("", "rules was")]
    {
        place.run(&format!("{LINE}{other} -o out --resume")).failure(2, says);
    }
    // What was measured is not measured again.
    let run = place.run(&format!("{LINE} --budget 5.5 -o out --resume")).success();
    assert!(
        !run.stderr.contains("budget: measuring") && run.stderr.contains("going on behind block"),
        "{}",
        run.stderr
    );
}

#[cfg(unix)]
#[test]
fn ctrl_c_offers_to_go_on() {
    let place = place();
    let line = LINE;
    place.run(&format!("{line} -o whole")).success();
    let mut child = start(&place, &format!("{line} -o out"));
    assert!(wait(&place, &mut child, || blocks_kept(&place) > 0));
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.code, Some(130), "{}", run.stderr);
    assert!(
        run.stderr.contains(&format!("of {LAYERS} blocks")) && run.stderr.contains("--resume"),
        "{}",
        run.stderr
    );
    assert!(staging(&place).is_some());

    // Another run is no way to go on, and says why; what is kept stays.
    for (other, says) in [
        (LINE.replace("--windows 50", "--windows 49"), "calibration.windows was 50, and is 49"),
        (format!("{line} --damping 0.5"), "damping was 0.01, and is 0.5"),
        (format!("{line} --error-correction 0.25"), "error_correction was 0.5, and is 0.25"),
        (format!("{line} --format compressed-tensors --group-size 32"), "group_size was 64, and is 32"),
        (LINE.replace("text.txt", "built-in"), "the calibration text was"),
        (format!("{line} --rule down_proj=int8 --format compressed-tensors"), "rules was [], and is [{"),
        (format!("{line} --activations half"), "activations was int8, and is half"),
    ] {
        let run = place.run(&format!("{other} -o out --resume")).failure(2, says);
        assert!(run.stderr.contains("without --resume"), "{}", run.stderr);
    }
    // The same name, another text.
    let text = fs::read(place.path("text.txt")).unwrap();
    fs::write(place.path("text.txt"), text.to_ascii_uppercase()).unwrap();
    place.run(&format!("{line} -o out --resume")).failure(2, "the calibration tokens' hash was");
    fs::write(place.path("text.txt"), text).unwrap();
    // The same model, written again.
    let weights = place.path("model/model.safetensors");
    let written = fs::metadata(&weights).unwrap().modified().unwrap();
    let file = fs::File::options().write(true).open(&weights).unwrap();
    file.set_modified(written + Duration::from_secs(1)).unwrap();
    place.run(&format!("{line} -o out --resume")).failure(2, "model.safetensors's time of modification was");
    file.set_modified(written).unwrap();

    let run = place.run(&format!("{line} -o out --resume --json")).success();
    assert!(run.json()["notes"].to_string().contains("going on behind block"), "{}", run.stderr);
    assert_same(&place, "whole", "out");
}

#[test]
fn without_the_option_a_run_starts_anew_and_says_so() {
    let place = place();
    let line = LINE;
    kill_when_kept(&place, &format!("{line} -o out"));
    let kept = staging(&place).unwrap();
    // What fails before it begins removes nothing.
    let run = place.run("quantize no-model -o out");
    assert!(run.code == Some(2) && kept.exists(), "{}", run.stderr);
    // Nor does another command.
    place.run("synth --like model -o out").failure(2, "blocks that a stopped run has finished");
    assert!(kept.exists());
    let run = place.run(&format!("{LINE} -o out")).success();
    assert!(run.stderr.contains("starts anew and removes it"), "{}", run.stderr);
    assert!(!run.stderr.contains("going on"), "{}", run.stderr);
    assert_eq!(place.names(), ["model", "out", "text.txt"]);
    // With nothing to go on with it is an ordinary run, and says that.
    let run = place.run(&format!("{LINE} -o new --resume")).success();
    assert!(run.stderr.contains("this one starts at the first"), "{}", run.stderr);
    assert_same(&place, "out", "new");
}

/// What a stopped run has finished is compared with the float model as well.
#[test]
fn what_goes_on_meets_the_gate() {
    let place = place();
    let line = format!("{LINE} --max-kld 1e-9");
    place.run(&format!("{line} -o whole")).failure(1, "too far from the float model");
    kill_when_kept(&place, &format!("{line} -o out"));
    let run = place.run(&format!("{line} -o out --resume")).failure(1, "out.failed-gate");
    assert!(run.stderr.contains("going on behind block"), "{}", run.stderr);
    assert_same(&place, "whole.failed-gate", "out.failed-gate");
    assert_eq!(place.names(), ["model", "out.failed-gate", "text.txt", "whole.failed-gate"]);
    // Another amount of text would give another report.
    kill_when_kept(&place, &format!("{line} -o out"));
    place.run(&format!("{line} -o out --resume --held-out 3")).failure(2, "held-out windows was 2, and is 3");
    // With another limit it is the same run.
    place.run(&format!("{LINE} -o out --resume")).success();
    assert!(place.path("out").is_dir());
}

#[test]
fn and_runs_without_calibration() {
    goes_over_blocks_again("quantize model --method rtn --held-out 16");
}

/// The files of hidden states that are kept now.
fn states(place: &Place) -> Vec<PathBuf> {
    let files = staging(place).into_iter().flat_map(|dir| fs::read_dir(dir).unwrap());
    let paths = files.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.to_string_lossy().contains(".resume-states-")).collect()
}

/// Without states a run goes over its finished blocks again, and comes to the same.
fn goes_over_blocks_again(line: &str) {
    let place = place();
    place.run(&format!("{line} -o whole")).success();
    kill_when(&place, &format!("{line} -o out"), || blocks_kept(&place) > 2);
    states(&place).iter().for_each(|path| fs::remove_file(path).unwrap());
    let run = place.run(&format!("{line} -o out --resume")).success();
    assert!(run.stderr.contains("going on behind block"), "{}", run.stderr);
    assert_same(&place, "whole", "out");
}

#[test]
fn blocks_are_run_again_where_no_states_were_kept() {
    goes_over_blocks_again(LINE);
    goes_over_blocks_again(&format!("{LINE} --format compressed-tensors --group-size 32"));
}

#[test]
fn and_those_of_smoothed_models() {
    goes_over_blocks_again(&format!("{LINE} --transform smooth --smooth-tokens 64"));
    let float = "--transform smooth --smooth-tokens 64 --propagation float --group-size channel";
    goes_over_blocks_again(&format!("{LINE} {float}"));
}

#[test]
fn and_those_with_layers_of_several_kinds() {
    let rules = "--rule down_proj=int8 --rule layers.1.self_attn=float --rule layers.0=float --rule layers.2=int4:g32";
    goes_over_blocks_again(&format!("{LINE} {rules}"));
    goes_over_blocks_again(&format!(
        "{LINE} {rules} --activations half --transform smooth --smooth-tokens 64"
    ));
}

#[test]
fn and_those_of_corrected_ones() {
    goes_over_blocks_again(LINE);
    goes_over_blocks_again(&format!("{LINE} --error-correction 1 --transform smooth --smooth-tokens 64"));
}

#[test]
fn and_those_that_learned() {
    goes_over_blocks_again(
        "quantize model --recipe omniquant --calibration text.txt --windows 6 --window 64 --epochs 1",
    );
}

#[test]
fn what_was_damaged_is_not_gone_on_with() {
    let place = place();
    let line = LINE;
    kill_when(&place, &format!("{line} -o out"), || !states(&place).is_empty() && blocks_kept(&place) > 0);
    let state_file = staging(&place).unwrap().join(".resume");
    let last = states(&place).pop().expect("states were kept");
    for file in [state_file.clone(), last] {
        let remedy = if file == state_file { "" } else { "finished blocks are run again instead" };
        let good = fs::read(&file).unwrap();
        let mut flipped = good.clone();
        let at = good.len() - 10;
        flipped[at] ^= 1;
        for (bad, says) in [
            (&flipped[..], "its hash is not that of its content"),
            (&good[..good.len() - 9], "it ends too early"),
            (&good[..10], "it ends too early"),
        ] {
            fs::write(&file, bad).unwrap();
            place.run(&format!("{line} -o out --resume")).failure(2, says).failure(2, remedy);
        }
        fs::write(&file, good).unwrap();
    }
    let state = staging(&place).unwrap().join(".resume");
    let good = fs::read(&state).unwrap();
    fs::write(&state, "something else altogether").unwrap();
    place.run(&format!("{line} -o out --resume")).failure(2, "another version of qqq");
    fs::write(&state, good).unwrap();
    // A bit of a tensor, and files that come along.
    let staging = staging(&place).unwrap();
    let shard = staging.join("shard-00001.safetensors");
    let good = fs::read(&shard).unwrap();
    let mut flipped = good.clone();
    flipped[(128 << 10) + 1000] ^= 1;
    fs::write(&shard, flipped).unwrap();
    place.run(&format!("{line} -o out --resume")).failure(2, "are not those that were kept");
    fs::write(&shard, &good[..good.len() / 2]).unwrap();
    place.run(&format!("{line} -o out --resume")).failure(2, "that were kept");
    fs::write(&shard, good).unwrap();
    fs::write(staging.join("tokenizer.json"), "{}").unwrap();
    place.run(&format!("{line} -o out --resume")).success();
    place.run(&format!("{line} -o whole")).success();
    assert_same(&place, "out", "whole");
    let tokenizer = |out: &str| fs::read(place.path(out).join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer("out"), tokenizer("whole"));
}
