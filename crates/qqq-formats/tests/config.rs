//! `config.json`: the families, transformers' defaults, and what is refused.

mod common;

use std::path::Path;

use qqq_formats::{FormatError, ModelConfig, Result, config::RopeScaling};
use serde_json::{Value, json};

fn parse(config: &Value) -> Result<ModelConfig> {
    ModelConfig::from_value(Path::new("config.json"), config.clone())
}

/// The small Llama with some fields set (or removed: `"-"`).
fn with(fields: Value) -> Value {
    let mut config = common::llama();
    let map = config.as_object_mut().unwrap();
    for (key, value) in fields.as_object().unwrap() {
        if value == "-" {
            map.remove(key);
        } else {
            map.insert(key.clone(), value.clone());
        }
    }
    config
}

fn error(fields: Value) -> String {
    match parse(&with(fields)) {
        Ok(config) => panic!("accepted: {config:?}"),
        Err(e) => e.to_string(),
    }
}

fn family(class: &str, fields: Value) -> Value {
    let mut config = with(json!({"architectures": [class], "model_type": "-"}));
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    config
}

#[test]
fn a_llama() {
    let c = parse(&common::llama()).unwrap();
    assert_eq!(c.architecture.model_type(), "llama");
    assert_eq!((c.hidden_size, c.intermediate_size, c.num_layers, c.vocab_size), (64, 128, 2, 320));
    assert_eq!((c.num_heads, c.num_kv_heads, c.head_dim), (4, 2, 16));
    assert_eq!((c.graph.qkv_bias, c.graph.o_bias, c.graph.mlp_bias), (false, false, false));
    assert_eq!((c.rope_theta, c.rope_scaling), (10_000.0, RopeScaling::None));
    assert_eq!((c.bos_token_id, c.eos_token_ids), (Some(1), vec![2]));
    assert_eq!(Value::from(c.raw), common::llama());
}

#[test]
fn defaults_are_those_of_transformers() {
    let optional = json!({
        "num_key_value_heads": "-", "max_position_embeddings": "-", "rms_norm_eps": "-", "rope_theta": "-",
        "hidden_act": "-", "bos_token_id": "-", "eos_token_id": null, "tie_word_embeddings": "-"
    });
    let c = parse(&with(optional)).unwrap();
    assert_eq!((c.num_kv_heads, c.max_position_embeddings, c.rms_norm_eps), (4, 2048, 1e-6));
    assert_eq!((c.rope_theta, c.tie_word_embeddings), (10_000.0, false));
    assert_eq!((c.bos_token_id, c.eos_token_ids), (None, vec![]));

    let c = parse(&family("Qwen3ForCausalLM", json!({}))).unwrap();
    assert_eq!(c.head_dim, 128);
    let c = parse(&with(json!({"head_dim": null, "num_key_value_heads": null}))).unwrap();
    assert_eq!((c.head_dim, c.num_kv_heads), (16, 4));
    let c = parse(&with(json!({"head_dim": 32}))).unwrap();
    assert_eq!(c.head_dim, 32);
    let c = parse(&with(json!({"eos_token_id": [128001, 128009]}))).unwrap();
    assert_eq!(c.eos_token_ids, [128_001, 128_009]);
}

#[test]
fn families_and_their_biases() {
    let bias = json!({"attention_bias": true, "mlp_bias": true});
    for (class, architecture, biases) in [
        ("LlamaForCausalLM", "llama", (true, true, true)),
        ("MistralForCausalLM", "mistral", (false, false, false)),
        ("Qwen2ForCausalLM", "qwen2", (true, false, false)),
        ("Qwen3ForCausalLM", "qwen3", (true, true, false)),
        ("SmolLM3ForCausalLM", "smollm3", (true, true, true)),
        ("GraniteForCausalLM", "granite", (true, true, true)),
        ("Phi3ForCausalLM", "phi3", (false, false, false)),
    ] {
        let c = parse(&family(class, bias.clone())).unwrap();
        assert_eq!(c.architecture.model_type(), architecture);
        assert_eq!(c.architecture.class_name(), class);
        assert_eq!((c.graph.qkv_bias, c.graph.o_bias, c.graph.mlp_bias), biases, "{class}");
        // Without a class name, the model type decides.
        let c = parse(&with(json!({"architectures": "-", "model_type": architecture}))).unwrap();
        assert_eq!(c.architecture.model_type(), architecture);
    }
    let c = parse(&family("Qwen2ForCausalLM", json!({}))).unwrap();
    assert_eq!((c.graph.qkv_bias, c.graph.o_bias), (true, false));
}

#[test]
fn unknown_architectures_are_named_with_those_supported() {
    for fields in [
        json!({"architectures": ["MixtralForCausalLM"]}),
        json!({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}),
        json!({"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2"}),
        json!({"architectures": [], "model_type": "gpt2"}),
    ] {
        let error = parse(&with(fields)).unwrap_err();
        assert!(matches!(error, FormatError::Unsupported(_)), "{error:?}");
        assert!(error.to_string().contains("Qwen3ForCausalLM"), "{error}");
    }
    assert!(error(json!({"architectures": "-", "model_type": "-"})).contains("neither"));
}

#[test]
fn rope_scaling_of_both_generations() {
    let llama3 = json!({
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"
    });
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192.0,
    };
    let c = parse(&with(json!({"rope_scaling": llama3, "rope_theta": 500_000.0}))).unwrap();
    assert_eq!((c.rope_theta, c.rope_scaling), (500_000.0, expected.clone()));

    let mut parameters = llama3.clone();
    parameters["rope_theta"] = json!(500_000.0);
    let c = parse(&with(json!({"rope_parameters": parameters, "rope_theta": "-"}))).unwrap();
    assert_eq!((c.rope_theta, c.rope_scaling), (500_000.0, expected));

    let linear = parse(&with(json!({"rope_scaling": {"type": "linear", "factor": 2}}))).unwrap();
    assert_eq!(linear.rope_scaling, RopeScaling::Linear { factor: 2.0 });
    for none in [json!(null), json!({"rope_type": "default"}), json!({})] {
        let c = parse(&with(json!({"rope_scaling": none}))).unwrap();
        assert_eq!(c.rope_scaling, RopeScaling::None);
    }
    let c = parse(&with(json!({
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_theta": "-"
    })));
    assert_eq!(c.unwrap().rope_theta, 1e6);

    for kind in ["su", "mrope", "axial"] {
        assert!(error(json!({"rope_scaling": {"type": kind, "factor": 2.0}})).contains(kind));
        assert!(error(json!({"rope_parameters": {"rope_type": kind}})).contains(kind));
    }
    assert!(error(json!({"rope_scaling": {"type": "linear"}})).contains("rope_scaling.factor is missing"));
    assert!(error(json!({"rope_scaling": {"type": "linear", "factor": 0}})).contains("above 0"));
    assert!(error(json!({"rope_scaling": {"type": "dynamic"}})).contains("rope_scaling.factor is missing"));
    assert!(error(json!({"rope_scaling": {"type": "yarn"}})).contains("rope_scaling.factor is missing"));
    assert!(error(json!({"rope_scaling": 2})).contains("an object"));
    assert!(error(json!({"partial_rotary_factor": 0.5})).contains("partial_rotary_factor"));
    let mut inverted = llama3;
    inverted["high_freq_factor"] = json!(1.0);
    assert!(error(json!({"rope_scaling": inverted})).contains("high_freq_factor"));
}

/// What counts where fields disagree; expected values from transformers 5.24 (`config.rope_parameters` after loading).
#[test]
fn rope_fields_beside_each_other() {
    let default = |theta: f64| json!({"rope_type": "default", "rope_theta": theta});
    let linear = json!({"rope_type": "linear", "factor": 4.0});
    for (scaling, parameters, top, theta, expected) in [
        (json!({"rope_type": "default"}), default(5e5), json!("-"), 1e4, RopeScaling::None),
        (linear.clone(), default(5e5), json!("-"), 1e4, RopeScaling::Linear { factor: 4.0 }),
        (linear.clone(), default(5e5), json!(2e4), 2e4, RopeScaling::Linear { factor: 4.0 }),
        (default(3e4), default(5e5), json!(2e4), 3e4, RopeScaling::None),
        (json!(null), default(5e5), json!(2e4), 5e5, RopeScaling::None),
        (json!({}), default(5e5), json!(null), 5e5, RopeScaling::None),
        (json!("-"), linear.clone(), json!(2e4), 2e4, RopeScaling::Linear { factor: 4.0 }),
        (json!("-"), json!({}), json!(2e4), 2e4, RopeScaling::None),
        (json!("-"), json!(null), json!(2e4), 2e4, RopeScaling::None),
        (
            json!("-"),
            json!({"rope_type": "dynamic", "factor": 2.0}),
            json!("-"),
            1e4,
            RopeScaling::Dynamic { factor: 2.0, original: 256 },
        ),
        (json!("-"), json!({"rope_type": "proportional"}), json!("-"), 1e4, RopeScaling::None),
    ] {
        let fields = json!({"rope_scaling": scaling, "rope_parameters": parameters, "rope_theta": top});
        let c = parse(&with(fields.clone())).unwrap();
        assert_eq!(
            (c.rope_theta, c.rope_scaling, c.rope_attention_factor),
            (theta, expected, 1.0),
            "{fields}"
        );
    }
    for (fields, words) in [
        (json!({"rope_theta": null}), "rope_theta is null"),
        (json!({"rope_parameters": {"rope_theta": null}}), "rope_theta is null"),
        (json!({"rope_scaling": linear, "rope_theta": null}), "rope_theta is null"),
        (json!({"rope_parameters": {"full_attention": default(5e5)}}), "rope_parameters.full_attention is"),
        (json!({"rope_scaling": {"type": "default", "factor": 4.0}}), "rope_scaling.factor is 4.0"),
        (json!({"rope_scaling": {"factor": 4.0}}), "rope_scaling.factor is 4.0"),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 8}}),
            "rope_scaling.beta_fast is 8",
        ),
        (json!({"rope_scaling": {"type": "yarn", "factor": 2, "attn_factor": 0.8}}), "attn_factor is 0.8"),
        (json!({"rope_parameters": {"partial_rotary_factor": 0.5}}), "partial_rotary_factor"),
        // A type of null, and a scaling from null positions, raise in transformers.
        (json!({"rope_scaling": {"rope_type": null, "type": "linear", "factor": 2}}), "rope_type is null"),
        (json!({"rope_parameters": {"rope_type": null}}), "rope_type is null"),
        (json!({"rope_scaling": {"type": null, "factor": 2}}), "type is null"),
        (
            json!({"rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": null}}),
            "original_max_position_embeddings is null",
        ),
        (
            json!({"rope_scaling": {"type": "yarn", "factor": 2}, "original_max_position_embeddings": null}),
            "original_max_position_embeddings is null",
        ),
    ] {
        let error = error(fields);
        assert!(error.contains(words), "{error}");
    }
    // A null that nobody looks at is none.
    for scaling in [
        json!({"rope_type": "linear", "type": null, "factor": 4.0}),
        json!({"rope_type": "linear", "factor": 4.0, "original_max_position_embeddings": null}),
    ] {
        let c = parse(&with(json!({"rope_scaling": scaling}))).unwrap();
        assert_eq!(c.rope_scaling, RopeScaling::Linear { factor: 4.0 });
    }
    // Models that have it beside the parameters mean that one.
    let llama3 = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4});
    let original = |fields: Value| match parse(&with(fields)).unwrap().rope_scaling {
        RopeScaling::Llama3 { original_max_position_embeddings, .. } => original_max_position_embeddings,
        other => panic!("{other:?}"),
    };
    assert_eq!(original(json!({"rope_scaling": llama3})), 256.0);
    assert_eq!(original(json!({"rope_scaling": llama3, "original_max_position_embeddings": 64})), 64.0);
}

/// As transformers' classes have it: `hidden_size / num_attention_heads`, or no configuration.
#[test]
fn a_width_of_heads_that_is_null() {
    let of =
        |class: &str, head_dim: Value| parse(&with(json!({"architectures": [class], "head_dim": head_dim})));
    for class in ["LlamaForCausalLM", "Qwen2ForCausalLM", "SeedOssForCausalLM"] {
        assert_eq!(of(class, Value::Null).unwrap().head_dim, 16, "{class}");
    }
    assert_eq!(of("SeedOssForCausalLM", json!("-")).unwrap().head_dim, 128);
    for (class, default) in
        [("Qwen3ForCausalLM", 128), ("Gemma3ForCausalLM", 256), ("Ministral3ForCausalLM", 128)]
    {
        let e = of(class, Value::Null).unwrap_err().to_string();
        assert!(e.contains("head_dim is null") && e.contains(&format!("if it is {default}")), "{e}");
    }
}

#[test]
fn rotary_embeddings_that_depend_on_the_length() {
    let longrope = |short: f64, long: f64, original: u32| {
        json!({
            "rope_type": "longrope", "short_factor": vec![short; 8], "long_factor": vec![long; 8],
            "original_max_position_embeddings": original
        })
    };
    // A context of 256.
    let c = parse(&with(json!({"rope_scaling": longrope(1.5, 3.0, 256)}))).unwrap();
    assert_eq!((c.rope_scaling, c.rope_attention_factor), (RopeScaling::Factors(vec![1.5; 8]), 1.0));
    let c = parse(&with(json!({"rope_scaling": longrope(2.0, 2.0, 64)}))).unwrap();
    // sqrt(1 + log(4) / log(64))
    assert_eq!(c.rope_scaling, RopeScaling::Factors(vec![2.0; 8]));
    assert!((c.rope_attention_factor - 1.154_700_538_379_251_5).abs() < 1e-15);
    assert_eq!(c.max_position_embeddings, 256);
    assert_eq!(c.rope_scaling.original_context(), None);
    // Two lists; the factor of attention is that of the whole context for both.
    let c = parse(&with(json!({"rope_scaling": longrope(1.5, 3.0, 64)}))).unwrap();
    let lists = RopeScaling::LongRope { short: vec![1.5; 8], long: vec![3.0; 8], original: 64 };
    assert_eq!((&c.rope_scaling, c.max_position_embeddings), (&lists, 256));
    assert_eq!(c.rope_scaling.original_context(), Some(64));
    assert!((c.rope_attention_factor - 1.154_700_538_379_251_5).abs() < 1e-15);
    let c = parse(&with(json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.5}}))).unwrap();
    assert_eq!(c.rope_scaling, RopeScaling::Dynamic { factor: 2.5, original: 256 });
    assert_eq!((c.max_position_embeddings, &c.raw["max_position_embeddings"]), (640, &json!(256)));
    let one_pair = json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "head_dim": 2});
    let e = parse(&with(one_pair)).unwrap_err().to_string();
    assert!(e.contains("dynamic") && e.contains("2 components"), "{e}");
    let mut short = longrope(1.0, 1.0, 64);
    short["short_factor"] = json!([1.0, 2.0]);
    assert!(error(json!({"rope_scaling": short})).contains("short_factor holds 2 divisors"));
}

/// Keys that change what is computed are refused, wherever transformers' class would not look at them.
#[test]
fn unknown_keys_are_named() {
    for (key, value) in [
        ("attn_logit_softcapping", json!(50.0)),
        ("logit_scale", json!(0.0625)),
        ("residual_multiplier", json!(0.22)),
        ("embedding_multiplier", json!(12.0)),
        ("use_qk_norm", json!(true)),
        ("no_rope_layers", json!([1, 1, 0, 1])),
        ("attention_chunk_size", json!(8192)),
        ("is_causal", json!(false)),
        ("rope_interleaved", json!(true)),
        ("num_experts", json!(8)),
        ("pruned_heads", json!({"0": [1]})),
        ("per_layer_config", json!({"0": {"hidden_size": 32}})),
        ("quantization", json!({"bits": 4, "group_size": 64})),
        ("layer_types", json!(["full_attention", "sliding_attention"])),
        ("activation", json!("gelu")),
        ("something_new", json!("yes")),
    ] {
        let error = error(json!({key: value}));
        let shown = value.to_string();
        assert!(error.contains(key) && (key == "layer_types" || error.contains(&shown)), "{key}: {error}");
        assert!(error.starts_with("config.json: "), "{error}");
    }
}

/// Published configurations: all their keys are known.
#[test]
fn keys_of_published_models_are_known() {
    let plain = parse(&common::llama()).unwrap();
    for fields in [
        json!({"_name_or_path": "x", "use_cache": true, "torch_dtype": "bfloat16", "transformers_version": "4.40.0",
            "attention_dropout": 0.0, "initializer_range": 0.041666666666666664, "pretraining_tp": 1,
            "pad_token_id": 2, "is_llama_config": true, "rope_interleaved": false, "rope_scaling": null,
            "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}}),
        json!({"auto_map": {"AutoModel": "m.M"}, "unsloth_version": "2025.12.5", "dtype": "bfloat16",
            "_attn_implementation_autoset": true, "max_sequence_length": 2048, "temperature": 0.6, "top_p": 0.9,
            "do_sample": true, "id2label": {"0": "a"}, "label2id": {"a": 0}, "task_specific_params": null}),
        json!({"activation": "swiglu", "use_swiglu": true, "causal": true, "eot_token_id": 5, "n_ctx": 2048,
            "dual_chunk_attention_config": {"chunk_size": 262144, "local_size": 8192},
            "rope_scaling": {"type": "default", "factor": 1.0, "mrope_section": [16, 24, 24]}}),
        json!({"logit_scale": 1.0, "attn_logit_softcapping": null, "use_qk_norm": false, "no_rope_layers": [1, 1],
            "is_causal": true, "layer_types": ["full_attention", "full_attention"], "sliding_window": 32,
            "alibi": false, "pruned_heads": {}, "chunk_size_feed_forward": 0, "cross_attention_hidden_size": null}),
    ] {
        let mut c = parse(&with(fields.clone())).unwrap_or_else(|e| panic!("{e}"));
        c.raw = plain.raw.clone();
        assert_eq!(c, plain, "{fields}");
    }
    let qwen = json!({"max_window_layers": 21, "sliding_window": 32768, "use_sliding_window": false, "use_mrope": false});
    assert!(parse(&family("Qwen2ForCausalLM", qwen)).is_ok());
}

#[test]
fn graphs_of_families() {
    let graph = |class: &str, fields: Value| parse(&family(class, fields)).map(|c| (c.rotary_dim, c.graph));
    let smol = |fields| graph("SmolLM3ForCausalLM", fields);
    assert_eq!(smol(json!({"num_hidden_layers": 5})).unwrap().1.rotary, [true, true, true, false, true]);
    assert_eq!(smol(json!({"no_rope_layer_interval": 2})).unwrap().1.rotary, [true, false]);
    let (_, slides) =
        smol(json!({"no_rope_layers": [1, 0], "use_sliding_window": true, "sliding_window": 8})).unwrap();
    assert_eq!((slides.rotary, slides.windows), (vec![true, false], vec![None, Some(8)]));
    assert!(smol(json!({"no_rope_layers": [1]})).unwrap_err().to_string().contains("1 entries for 2 layers"));
    let sliding = smol(json!({"layer_types": ["full_attention", "sliding_attention"]}));
    assert!(sliding.unwrap_err().to_string().contains("no window slides"));

    let (_, granite) = graph(
        "GraniteForCausalLM",
        json!({"attention_multiplier": 0.5, "embedding_multiplier": 12, "logits_scaling": 8, "residual_multiplier": 0.25}),
    )
    .unwrap();
    assert_eq!(granite.attention_scale, Some(0.5));
    assert_eq!((granite.embedding_scale, granite.residual_scale, granite.logit_divisor), (12.0, 0.25, 8.0));
    let zero = graph("GraniteForCausalLM", json!({"logits_scaling": 0.0}));
    assert!(zero.unwrap_err().to_string().contains("logits_scaling is 0"));
    // What a missing factor means to the class is not what it means to others.
    assert_eq!(graph("GraniteForCausalLM", json!({})).unwrap().1.attention_scale, Some(1.0));

    let phi = |fields| graph("Phi3ForCausalLM", fields);
    let (width, plain) = phi(json!({})).unwrap();
    assert!(plain.fused && plain.windows == [None, None]);
    assert_eq!(phi(json!({"partial_rotary_factor": 0.5})).unwrap().0 * 2, width);
    let inside = json!({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}});
    assert_eq!(phi(inside).unwrap().0 * 2, width);
    assert!(phi(json!({"partial_rotary_factor": 0.01})).unwrap_err().to_string().contains("even number"));
    assert_eq!(phi(json!({"sliding_window": 9})).unwrap().1.window_of_all(), Some(9));
}

#[test]
fn sliding_windows() {
    let window = |class: &str, fields: Value| parse(&family(class, fields)).map(|c| c.graph.window_of_all());
    assert_eq!(window("LlamaForCausalLM", json!({"sliding_window": 16})).unwrap(), None);
    let mistral = |fields| window("MistralForCausalLM", fields).unwrap();
    assert_eq!(mistral(json!({"sliding_window": 16})), Some(16));
    assert_eq!(mistral(json!({"sliding_window": null})), None);
    assert_eq!(mistral(json!({})), Some(4096));
    let sliding = json!(["sliding_attention", "sliding_attention"]);
    assert_eq!(mistral(json!({"sliding_window": 16, "layer_types": sliding})), Some(16));
    let full = window("MistralForCausalLM", json!({"sliding_window": 16, "layer_types": ["full_attention"]}));
    assert!(full.unwrap_err().to_string().contains("layer_types"));

    for class in ["Qwen2ForCausalLM", "Qwen3ForCausalLM"] {
        let qwen = |fields| window(class, fields);
        assert_eq!(qwen(json!({"sliding_window": 16})).unwrap(), None);
        let on =
            |max: usize| json!({"use_sliding_window": true, "sliding_window": 16, "max_window_layers": max});
        assert_eq!(qwen(on(2)).unwrap(), None, "no layer is at or above 2");
        assert_eq!(qwen(on(0)).unwrap(), Some(16));
        let windows = |fields| parse(&family(class, fields)).unwrap().graph.windows;
        assert_eq!(windows(on(1)), [None, Some(16)]);
        let layers = |a: &str, b: &str| json!({"use_sliding_window": true, "sliding_window": 16, "max_window_layers": 1, "layer_types": [a, b]});
        let (full, sliding) = ("full_attention", "sliding_attention");
        assert_eq!(qwen(layers(full, full)).unwrap(), None);
        assert_eq!(qwen(layers(sliding, sliding)).unwrap(), Some(16));
        assert_eq!(windows(layers(full, sliding)), [None, Some(16)]);
        assert_eq!(windows(layers(sliding, full)), [Some(16), None]);
        // Every layer has a type that is known, and says what the window says.
        let refused = |fields: Value| qwen(fields).unwrap_err().to_string();
        let four = json!({"use_sliding_window": true, "sliding_window": 16, "layer_types": [full, full, sliding, sliding]});
        assert!(refused(four).contains("has 4 entries for 2 layers"));
        assert!(refused(layers(full, "linear_attention")).contains("linear_attention"));
        assert!(refused(json!({"layer_types": [full, "chunked_attention"]})).contains("chunked_attention"));
        assert!(
            refused(json!({"use_sliding_window": false, "layer_types": [sliding, sliding]}))
                .contains(sliding)
        );
    }
}

#[test]
fn fields_out_of_range_are_named() {
    for (fields, words) in [
        (json!({"hidden_size": 0}), "hidden_size is 0"),
        (json!({"hidden_size": "-"}), "hidden_size is missing"),
        (json!({"hidden_size": -64}), "hidden_size is -64"),
        (json!({"hidden_size": 64.5}), "hidden_size is 64.5"),
        (json!({"vocab_size": u64::MAX}), "vocab_size is 18446744073709551615"),
        (json!({"intermediate_size": 1u64 << 40}), "intermediate_size is"),
        (json!({"num_hidden_layers": 1_000_000}), "num_hidden_layers is 1000000"),
        (json!({"num_attention_heads": 3}), "not a multiple of num_key_value_heads"),
        (json!({"num_key_value_heads": 0}), "num_key_value_heads is 0"),
        (json!({"head_dim": 15}), "head_dim is 15"),
        (json!({"head_dim": 0}), "head_dim is 0"),
        (json!({"hidden_size": 2, "num_attention_heads": 4}), "head_dim is 0"),
        (json!({"num_attention_heads": 16384, "head_dim": 4096}), "too many"),
        (json!({"rms_norm_eps": "small"}), "rms_norm_eps is \"small\""),
        (json!({"rms_norm_eps": -1}), "rms_norm_eps"),
        (json!({"rope_theta": 0}), "rope_theta is 0"),
        (json!({"hidden_act": "gelu"}), "hidden_act \"gelu\""),
        (json!({"eos_token_id": "two"}), "eos_token_id is \"two\""),
        (json!({"eos_token_id": [1, -5]}), "eos_token_id"),
        (json!({"tie_word_embeddings": 1}), "tie_word_embeddings is 1"),
        (json!({"architectures": "LlamaForCausalLM"}), "a list of strings"),
    ] {
        let error = error(fields);
        assert!(error.contains(words), "{error:?} does not contain {words:?}");
        assert!(error.contains("config.json"), "{error}");
    }
    assert!(ModelConfig::from_value(Path::new("c.json"), json!([])).is_err());
}
