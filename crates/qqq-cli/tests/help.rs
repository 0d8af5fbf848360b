//! Help texts, as a user reads them.

mod common;

use std::process::Command;

fn help(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qqq"));
    common::clean(&mut command);
    let output = command.args(arguments).arg("--help").output().unwrap();
    assert!(output.status.success());
    assert!(output.stderr.is_empty());
    let text = String::from_utf8(output.stdout).unwrap();
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "too wide: {line}");
    }
    // Trailing spaces are of no concern.
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

macro_rules! snapshots {
    ($($name:ident: $($argument:literal)*;)*) => {$(
        #[test]
        fn $name() {
            insta::assert_snapshot!(help(&[$($argument),*]));
        }
    )*};
}

snapshots! {
    qqq: ;
    quantize: "quantize";
    convert: "convert";
    generate: "generate";
    chat: "chat";
    eval: "eval";
    eval_perplexity: "eval" "perplexity";
    eval_kld: "eval" "kld";
    eval_curve: "eval" "curve";
    eval_tasks: "eval" "tasks";
    compare: "compare";
    inspect: "inspect";
    bench: "bench";
    bench_gemm: "bench" "gemm";
    bench_model: "bench" "model";
    kernels: "kernels";
    kernels_build: "kernels" "build";
    kernels_list: "kernels" "list";
    demo: "demo";
    synth: "synth";
    rerun: "rerun";
    doctor: "doctor";
}
