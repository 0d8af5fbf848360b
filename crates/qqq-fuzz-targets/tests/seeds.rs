//! The fuzzer's seeds: none makes a reader panic; those that were broken on purpose are refused, the others accepted.

use std::path::Path;

use qqq_fuzz_targets::TARGETS;

#[test]
fn seeds_are_accepted_or_refused_as_their_names_say() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    let mut folders: Vec<_> = std::fs::read_dir(&seeds).unwrap().map(|e| e.unwrap().file_name()).collect();
    folders.sort();
    assert_eq!(folders, TARGETS.map(|(name, _)| name), "a folder of seeds for every target");
    let mut wrong = Vec::new();
    for (target, run) in TARGETS {
        let mut counts = [0, 0];
        for entry in std::fs::read_dir(seeds.join(target)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let bad = name.starts_with("bad_");
            let outcome = run(&std::fs::read(&path).unwrap());
            println!("{target}/{name}: {outcome:?}");
            if outcome.is_err() != bad {
                wrong.push(format!("{target}/{name}: {outcome:?}"));
            }
            counts[usize::from(bad)] += 1;
        }
        assert!(counts.iter().all(|n| *n > 0), "{target}: {counts:?} valid and broken seeds");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
