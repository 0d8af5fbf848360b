//! A hub on a local port stands in for the real one.

mod downloads;
mod server;

use std::{fs, net::TcpListener, path::Path};

use super::{
    HubOptions, Kind,
    client::Client,
    dataset,
    dataset::{choose, whole_split},
    environment::Settings,
    model_files, parse_id, resolve,
};
use server::{Hub, MAIN, OLD, Repos, client};

const LONG: &str = "a file in one piece, long enough to be cut in the middle more than once";

fn hub() -> Hub {
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    let sharded = [
        ("config.json", "{}"),
        ("tokenizer.json", "tok"),
        ("README.md", "card"),
        ("LICENSE.txt", "terms"),
        ("USE_POLICY.md", "more terms"),
        ("additional_chat_templates/tool use.jinja", "template"),
        ("modeling_own.py", "not fetched"),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", "one"),
        ("model-2.safetensors", "two"),
        ("consolidated.safetensors", "not fetched"),
    ];
    let split = [
        ("BF16/m-BF16-00001-of-00003.gguf", "b1"),
        ("BF16/m-BF16-00002-of-00003.gguf", "b2"),
        ("BF16/m-BF16-00003-of-00003.gguf", "b3"),
        ("half/m-00001-of-00002.gguf", "h1"),
        ("m.Q4_0.gguf", "4"),
        ("m.Q8_0.gguf", "8"),
    ];
    let texts = [
        ("data/train-00000-of-00002.parquet", "p0"),
        ("data/train-00001-of-00002.parquet", "p1"),
        ("data/test-00000-of-00001.parquet", "t"),
    ];
    Hub::start(
        Repos::default()
            .with("models/owner/sharded@main", MAIN, &sharded)
            .with(
                "models/owner/sharded@v1.0",
                OLD,
                &[("config.json", "{}"), ("model.safetensors", "old weights")],
            )
            .with("models/owner/whole@main", MAIN, &[("config.json", "{}"), ("model.safetensors", LONG)])
            .with("models/owner/whole@refs/pr/1", OLD, &[("config.json", "{}"), ("model.safetensors", LONG)])
            .with("models/owner/ggufs@main", MAIN, &split)
            .with("models/owner/pickle@main", MAIN, &[("config.json", "{}"), ("pytorch_model.bin", "x")])
            .with("datasets/owner/texts@main", MAIN, &texts),
    )
}

fn options() -> HubOptions {
    HubOptions::default()
}

fn offline() -> HubOptions {
    HubOptions { offline: true, ..options() }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_sharded_model_is_fetched_once_and_found_offline() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let dir = hub.model(cache.path(), "owner/sharded", None, &options()).unwrap();
    assert_eq!(
        names(&dir),
        [
            "LICENSE.txt",
            "README.md",
            "USE_POLICY.md",
            "additional_chat_templates",
            "config.json",
            "model-1.safetensors",
            "model-2.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json"
        ]
    );
    assert_eq!(names(&dir.join("additional_chat_templates")), ["tool use.jinja"]);
    assert_eq!(fs::read_to_string(dir.join("model-2.safetensors")).unwrap(), "two");

    let before = hub.requests();
    assert_eq!(hub.model(cache.path(), "owner/sharded", None, &options()).unwrap(), dir);
    assert_eq!(hub.requests(), before + 1, "only the list of files is asked for again");
    assert_eq!(hub.model(cache.path(), "owner/sharded", None, &offline()).unwrap(), dir);
    let commit = HubOptions { revision: Some(MAIN.into()), ..offline() };
    assert_eq!(hub.model(cache.path(), "owner/sharded", None, &commit).unwrap(), dir);
    assert_eq!(hub.requests(), before + 1, "offline means offline");

    fs::remove_file(dir.join("model-2.safetensors")).unwrap();
    let e = hub.model(cache.path(), "owner/sharded", None, &offline()).unwrap_err().to_string();
    assert!(e.contains("model-2.safetensors") && e.contains("with network"), "{e}");
}

#[test]
fn a_revision_is_a_model_of_its_own() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let v1 = HubOptions { revision: Some("v1.0".into()), ..options() };
    let dir = hub.model(cache.path(), "owner/sharded", None, &v1).unwrap();
    assert_eq!(fs::read_to_string(dir.join("model.safetensors")).unwrap(), "old weights");
    assert!(hub.model(cache.path(), "owner/sharded", None, &offline()).is_err(), "main was never fetched");
    let e = hub.model(
        cache.path(),
        "owner/sharded",
        None,
        &HubOptions { revision: Some("v9".into()), ..options() },
    );
    let e = e.unwrap_err().to_string();
    assert!(e.contains("404") && e.contains("revision v9"), "{e}");
    for bad in ["../../x", "", "a b", "/root"] {
        let options = HubOptions { revision: Some(bad.into()), ..offline() };
        let settings = Settings::read(&options, &|name| (name == "HOME").then(|| "/none".into())).unwrap();
        assert!(Client::new(&settings, Kind::Model, "a/b", &options).is_err(), "{bad:?}");
    }
}

#[test]
fn a_gguf_file_is_named_after_a_colon() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let ask = |file: Option<&str>, o: &HubOptions| hub.model(cache.path(), "owner/ggufs", file, o);
    let refused = |file: Option<&str>| ask(file, &options()).unwrap_err().to_string();
    let file = ask(Some("m.Q8_0.gguf"), &options()).unwrap();
    assert!(file.ends_with("m.Q8_0.gguf"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "8");
    assert_eq!(ask(Some("m.Q8_0.gguf"), &offline()).unwrap(), file);
    let e = refused(None);
    assert!(
        e.contains("owner/ggufs:BF16/m-BF16-00001-of-00003.gguf") && !e.contains("-00002-of-00003"),
        "{e}"
    );
    let e = refused(Some("m.Q5_0.gguf"));
    assert!(e.contains("m.Q4_0.gguf, m.Q8_0.gguf"), "{e}");
    assert!(refused(Some("config.json")).contains("only a GGUF file"));
    // A quantization's name, as other tools take it.
    assert!(refused(Some("q8_0")).contains("is owner/ggufs:m.Q8_0.gguf what you mean?"));
    assert!(refused(Some("m.Q")).contains("there are m.Q4_0.gguf, m.Q8_0.gguf"));
}

#[test]
fn all_parts_of_a_split_gguf_file_are_fetched() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let ask = |file: &str, o: &HubOptions| hub.model(cache.path(), "owner/ggufs", Some(file), o);
    // Whichever is named: the first is what readers open.
    let first = ask("BF16/m-BF16-00002-of-00003.gguf", &options()).unwrap();
    assert!(first.ends_with("BF16/m-BF16-00001-of-00003.gguf"));
    let folder = first.parent().unwrap();
    assert_eq!(names(folder).len(), 3);
    assert_eq!(fs::read_to_string(folder.join("m-BF16-00003-of-00003.gguf")).unwrap(), "b3");
    assert_eq!(ask("BF16/m-BF16-00001-of-00003.gguf", &offline()).unwrap(), first);
    let e = ask("half/m-00001-of-00002.gguf", &options()).unwrap_err().to_string();
    assert!(e.contains("has no file half/m-00002-of-00002.gguf"), "{e}");
}

#[test]
fn refusals_say_what_to_do() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let message =
        |repo: &str, o: &HubOptions| hub.model(cache.path(), repo, None, o).unwrap_err().to_string();
    let e = message("owner/private", &options());
    assert!(e.contains("401") && e.contains("mistyped") && e.contains("--token"), "{e}");
    let e = message("owner/gated", &HubOptions { token: Some("secret".into()), ..options() });
    assert!(e.contains("403") && e.contains("accept its terms") && e.contains("expired"), "{e}");
    assert!(e.contains("the hub says: ask them") && !e.contains("secret"), "{e}");
    let e = message("owner/limited", &options());
    assert!(e.contains("429") && e.contains("wait"), "{e}");
    let e = message("owner/portal", &options());
    assert!(e.contains("text/html") && e.contains("login"), "{e}");
    let e = message("owner/missing", &options());
    assert!(e.contains("404") && e.contains("spelling"), "{e}");
    let e = message("owner/broken", &options());
    assert!(e.contains("503") && e.contains("later"), "{e}");
    let e = message("owner/pickle", &options());
    assert!(e.contains("pickle"), "{e}");
    let e = message("owner/sharded", &offline());
    assert!(e.contains("not in the hub's cache") && e.contains("local path"), "{e}");

    let client = client(&nowhere(), cache.path(), Kind::Model, "a/b", &options());
    let e = model_files(&client, None).unwrap_err().to_string();
    assert!(e.contains("cannot reach") && e.contains("refuse") && e.contains("--offline"), "{e}");
}

/// A hub's address on a port where nobody listens: bound, then released.
fn nowhere() -> String {
    format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
}

#[test]
fn a_data_set_gives_the_first_file_of_its_train_split() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let fetch = |part: Option<&str>, o: &HubOptions| {
        dataset::files(&hub.client(cache.path(), Kind::Dataset, "owner/texts", o), part)
    };
    let files = fetch(None, &options()).unwrap();
    assert_eq!(files.len(), 1);
    assert!(files[0].ends_with("data/train-00000-of-00002.parquet"));
    assert_eq!(fs::read_to_string(&files[0]).unwrap(), "p0");
    assert_eq!(fetch(None, &offline()).unwrap(), files);
    assert!(fetch(Some("data/test"), &options()).unwrap()[0].ends_with("data/test-00000-of-00001.parquet"));
    assert!(fetch(Some("/validation"), &options()).unwrap_err().to_string().contains("no split"));
}

#[test]
fn files_of_data_sets_are_chosen_by_configuration_split_and_kind() {
    let wikitext = [
        "README.md",
        "wikitext-103-raw-v1/train-00000-of-00002.parquet",
        "wikitext-2-raw-v1/test-00000-of-00001.parquet",
        "wikitext-2-raw-v1/train-00000-of-00001.parquet",
    ];
    assert_eq!(choose(&wikitext, Some("wikitext-2-raw-v1")), Ok(wikitext[3]));
    assert_eq!(choose(&wikitext, Some("wikitext-2-raw-v1/test")), Ok(wikitext[2]));
    assert!(choose(&wikitext, None).unwrap_err().contains("wikitext-103-raw-v1, wikitext-2-raw-v1"));
    assert!(choose(&wikitext, Some("wikitext-2")).unwrap_err().contains("no configuration"));
    assert_eq!(choose(&["dataset_infos.json", "texts.jsonl"], None), Ok("texts.jsonl"));
    assert_eq!(choose(&["train.txt", "train.jsonl", "val.jsonl.zst"], None), Ok("train.jsonl"));
    assert!(choose(&["a.jsonl", "b.jsonl"], None).unwrap_err().contains("a.jsonl, b.jsonl"));
    let c4 = ["en/c4-train.00000-of-01024.json.gz", "en/c4-validation.00000-of-00008.json.gz"];
    assert_eq!(choose(&c4, None), Ok(c4[0]));
    assert!(choose(&["train.tar.gz"], None).unwrap_err().contains("unpack"));
    assert!(choose(&["script.py"], None).unwrap_err().contains("script"));
    let parts =
        ["d/test-00001-of-00002.parquet", "d/test-00000-of-00002.parquet", "d/train-00000-of-00001.parquet"];
    assert_eq!(whole_split(&parts, None, "test"), Ok(vec![parts[1], parts[0]]));
    assert!(whole_split(&parts[1..], None, "test").unwrap_err().contains("not exactly 2 parts"));
    let languages = ["data/test_set.jsonl", "data/test_set_de.jsonl", "data/test_set_fr.jsonl"];
    assert_eq!(whole_split(&languages, Some("test_set"), "test"), Ok(vec![languages[0]]));
    assert!(whole_split(&languages, None, "test").unwrap_err().contains("several of its files"));
}

#[test]
fn paths_and_ids() {
    assert_eq!(parse_id("Qwen/Qwen2.5-0.5B"), Some(("Qwen/Qwen2.5-0.5B", None)));
    assert_eq!(parse_id("a/b:c/d.gguf"), Some(("a/b", Some("c/d.gguf"))));
    assert_eq!(parse_id("a/b:en/train"), Some(("a/b", Some("en/train"))));
    assert_eq!(parse_id("a/b:/test"), Some(("a/b", Some("/test"))));
    for bad in [
        "",
        "gpt2",
        "./model",
        "../a",
        "/model",
        "a/b/c",
        "~/model",
        "models/x.gguf",
        "a/b c",
        "a/",
        "a/b:",
        "https://x/y",
        "a/b/",
        "../a:b/c",
    ] {
        assert_eq!(parse_id(bad), None, "{bad:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    assert_eq!(resolve(path, &offline()).unwrap(), dir.path());
    let e = resolve(&format!("{path}/typo"), &offline()).unwrap_err().to_string();
    assert!(e.contains("neither an existing path nor an id"), "{e}");
}
