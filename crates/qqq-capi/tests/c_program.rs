//! A C program against the header and the library.

use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::Command;

use qqq_capi::{
    qqq_gemm_operands, qqq_gemm_shape, qqq_quantize_operands, qqq_quantize_shape, qqq_weight_operands,
};

/// The folder with `libqqq_capi.so`, which Cargo builds beside the tests.
fn library_folder() -> PathBuf {
    let test = std::env::current_exe().expect("a test is a program");
    let folder = test.parent().expect("tests lie in target/PROFILE/deps");
    let name = format!("{}qqq_capi{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    assert!(folder.join(&name).is_file(), "no {name} in {}", folder.display());
    folder.to_owned()
}

#[test]
fn a_c_program_compiles_links_and_runs() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("capi_program");
    let libraries = library_folder();
    let compiled = Command::new(std::env::var("CC").unwrap_or_else(|_| String::from("cc")))
        .args(["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-O1", "-Wall", "-Wextra", "-Werror"])
        .arg("-I")
        .arg(here.join("include"))
        .arg(here.join("tests/program.c"))
        .arg("-o")
        .arg(&program)
        .arg("-L")
        .arg(&libraries)
        .args(["-lqqq_capi", "-ldl", "-lm"])
        .output()
        .expect("a C compiler");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let run = Command::new(&program).env("LD_LIBRARY_PATH", &libraries).output().expect("the program");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let printed = String::from_utf8_lossy(&run.stdout);
    println!("{printed}");
    let layouts = [
        size_of::<qqq_gemm_shape>(),
        offset_of!(qqq_gemm_shape, n),
        size_of::<qqq_weight_operands>(),
        size_of::<qqq_gemm_operands>(),
        offset_of!(qqq_gemm_operands, overlap),
        size_of::<qqq_quantize_shape>(),
        offset_of!(qqq_quantize_shape, k),
        size_of::<qqq_quantize_operands>(),
        offset_of!(qqq_quantize_operands, overlap),
    ];
    let layouts = layouts.map(|n| n.to_string()).join(" ");
    assert_eq!(printed.lines().next(), Some(format!("layouts {layouts}").as_str()));
}
