//! A C program against the header and the library.

use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::sync::OnceLock;

use half::f16;
use qqq_capi::{
    qqq_gemm_operands, qqq_gemm_shape, qqq_quantize_operands, qqq_quantize_shape, qqq_weight_operands,
};
use qqq_cuda::DType;
use qqq_cuda::gemm::{PackedWeights, WeightKind};
use qqq_formats::{CodeBits, QuantizedWeight, Scales};
use qqq_testing::{Missing, Suite, tests};

/// What the program ends with where there is no GPU.
const NO_GPU: i32 = 77;

fn main() -> ExitCode {
    Suite::new()
        .with(
            program,
            tests![mistakes_are_errors_and_layouts_are_the_same, the_host_packs_weights_of_every_kind],
        )
        .with(products, tests![products_are_equal])
        .run()
}

/// The folder with `libqqq_capi.so`, which Cargo builds beside the tests.
fn library_folder() -> PathBuf {
    let test = std::env::current_exe().expect("a test is a program");
    let folder = test.parent().expect("tests lie in target/PROFILE/deps");
    let name = format!("{}qqq_capi{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    assert!(folder.join(&name).is_file(), "no {name} in {}", folder.display());
    folder.to_owned()
}

/// The program, compiled and linked once.
fn program() -> Result<PathBuf, Missing> {
    static PROGRAM: OnceLock<Result<PathBuf, Missing>> = OnceLock::new();
    PROGRAM.get_or_init(|| qqq_testing::cc().map(|cc| compiled(Command::new(cc)))).clone()
}

fn compiled(mut compiler: Command) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("capi_program");
    let output = compiler
        .args(["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-O1", "-Wall", "-Wextra", "-Werror"])
        .arg("-I")
        .arg(here.join("include"))
        .arg(here.join("tests/program.c"))
        .arg("-o")
        .arg(&program)
        .arg("-L")
        .arg(library_folder())
        .args(["-lqqq_capi", "-ldl", "-lm"])
        .output()
        .expect("a C compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

fn run(program: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).env("LD_LIBRARY_PATH", library_folder()).output().expect("the program")
}

fn mistakes_are_errors_and_layouts_are_the_same(program: PathBuf) {
    let output = run(&program, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
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
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(printed.lines().next(), Some(format!("layouts {layouts}").as_str()));
}

/// The program's weights, packed by the library that stands behind the header.
fn the_host_packs_weights_of_every_kind(program: PathBuf) {
    const N: usize = 208;
    const K: usize = 384;
    const GROUP: usize = 128;
    let codes: Vec<i8> = (0..N * K).map(|i| ((i * 7 + i / 5) % 15) as i8 - 7).collect();
    let channel: Vec<f32> = (0..N).map(|i| (i + 1) as f32 / 1024.0).collect();
    let groups = || {
        let group = (0..N * (K / GROUP)).map(|i| f16::from_f32((i % 17) as f32)).collect();
        Scales::PerGroup { group_size: GROUP, channel: channel.clone(), group }
    };
    let weight = |grouped: bool| {
        let scales = if grouped { groups() } else { Scales::PerChannel(channel.clone()) };
        QuantizedWeight {
            bits: CodeBits::Four,
            out_features: N,
            in_features: K,
            codes: codes.clone(),
            scales,
        }
    };
    let half = WeightKind::GroupHalf4(GROUP);
    let packed = [
        PackedWeights::for_activation(&weight(false), DType::F16),
        PackedWeights::for_activation(&weight(false), DType::BF16),
        PackedWeights::for_activation(&weight(true), DType::F16),
        PackedWeights::for_activation(&weight(true), DType::BF16),
        PackedWeights::new(&weight(false)),
        PackedWeights::new(&weight(true)),
        PackedWeights::of_kind(&weight(true), half, DType::I8),
        PackedWeights::from_int8(&codes, &channel, K),
    ];
    let mut expected = String::from("packed");
    for packed in packed {
        let packed = packed.unwrap();
        let sum = |values: &mut dyn Iterator<Item = u32>| {
            values.fold(0u32, |sum, value| sum.wrapping_mul(31).wrapping_add(value))
        };
        let bytes = sum(&mut packed.weight_tiles.iter().map(|b| u32::from(*b)));
        let scales = sum(&mut packed.channel_scale.iter().map(|s| (s * 16384.0) as u32));
        expected += &format!(" {}:{bytes}:{scales}", packed.weight_tiles.len());
    }
    let output = run(&program, &[]);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(printed.lines().nth(1), Some(expected.as_str()));
}

/// What the program gives on a GPU.
fn products() -> Result<Output, Missing> {
    let output = run(&program()?, &["gpu"]);
    if output.status.code() == Some(NO_GPU) {
        return Err(Missing::Machine(String::from_utf8_lossy(&output.stdout).trim().to_owned()));
    }
    Ok(output)
}

fn products_are_equal(output: Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    println!("{}", String::from_utf8_lossy(&output.stdout));
}
