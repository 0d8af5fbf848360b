//! The CUDA kernels on the CPU: their sources, compiled by the host's compiler for an emulated GPU (`emulator/`), which
//! picks at random, from a seed, who runs next and when what is asynchronous takes effect. Wrong results, deadlocks,
//! races with the copy engine and the tensor cores, and writes beside the operands are found without a GPU.
//!
//! A selection of the products is run. `QQQ_EMULATE=all` runs every instance in more cases, which takes an hour;
//! `QQQ_EMULATE_SEED` is added to the seeds.

#[path = "../common/attending.rs"]
mod attending;
#[path = "../common/packing.rs"]
mod packing;
#[path = "../common/products_half.rs"]
mod products_half;
#[path = "../common/products_int8.rs"]
mod products_int8;
#[path = "../common/quantized.rs"]
mod quantized;
#[path = "../common/simulated.rs"]
mod simulated;
#[path = "../common/uniform.rs"]
mod uniform;

mod emulated_attention;
mod emulated_calibrate;
mod emulated_correct;
mod emulated_decoder;
mod emulated_head;
mod emulated_mistakes;
mod emulated_products;
mod emulated_quantize;
mod emulated_simulated;
mod emulated_smooth;
mod emulator;
mod product;

use std::process::ExitCode;

use qqq_testing::{Suite, tests};

fn main() -> ExitCode {
    Suite::new()
        .with(
            qqq_testing::cxx,
            tests![
                emulated_attention::attention_is_that_of_float64,
                emulated_attention::mistakes_in_attention_are_found,
                emulated_calibrate::inputs_and_moments,
                emulated_calibrate::layers_are_solved,
                emulated_calibrate::mistakes_in_calibration_are_found,
                emulated_correct::mistakes_in_the_correction_are_found,
                emulated_correct::weights_are_corrected,
                emulated_decoder::embeddings_sums_and_largest_elements,
                emulated_decoder::heads_are_rotated,
                emulated_decoder::losses_are_those_of_float64,
                emulated_decoder::comparisons_are_those_of_float64,
                emulated_decoder::rows_are_those_of_float64,
                emulated_head::columns_are_drawn_by_their_probabilities,
                emulated_head::the_largest_outputs_are_found,
                emulated_head::logits_of_int8_weights_are_exact,
                emulated_head::mistakes_in_the_head_are_found,
                emulated_mistakes::mistakes_are_found,
                emulated_products::products_of_int8_activations,
                emulated_products::products_of_16_bit_activations,
                emulated_products::batch_invariant_plans,
                emulated_quantize::activations_are_those_of_float64,
                emulated_quantize::weights_are_packed_as_on_the_host,
                emulated_simulated::simulated_layers_are_those_of_the_cpu,
                emulated_simulated::simulated_layers_show_what_is_not_finite,
                emulated_smooth::candidates_of_the_smoothing_search,
                emulated_smooth::mistakes_in_the_smoothing_search_are_found
            ],
        )
        .run()
}

/// Whether everything is run.
fn everything() -> bool {
    std::env::var("QQQ_EMULATE").is_ok_and(|v| v == "all")
}

fn seed() -> u64 {
    std::env::var("QQQ_EMULATE_SEED").map_or(0, |v| v.parse().expect("QQQ_EMULATE_SEED is a number"))
}
