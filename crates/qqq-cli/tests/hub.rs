//! Models and data sets of a hub, which is a port of this machine.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    thread,
};

use common::{Place, Run, TEXT};
use serde_json::json;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Repositories, as `models/owner/name`: their files.
type Repos = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

struct Hub {
    endpoint: String,
    /// The Authorization headers so far.
    tokens: Arc<Mutex<Vec<Option<String>>>>,
}

impl Hub {
    fn start(repos: Repos) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let tokens = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&tokens);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(&stream, &repos, &seen);
            }
        });
        Self { endpoint, tokens }
    }

    /// The tiny model, its LICENSE and a data set.
    fn of(place: &Place) -> Self {
        let mut model = BTreeMap::new();
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
            model.insert(name.to_owned(), fs::read(place.path("model").join(name)).unwrap());
        }
        model.insert("LICENSE".into(), b"terms".to_vec());
        model.insert("additional_chat_templates/tool_use.jinja".into(), b"{{ x }}".to_vec());
        let rows: String = TEXT.lines().map(|l| json!({ "text": l }).to_string() + "\n").collect();
        let ggufs = BTreeMap::from([("BF16/m-BF16.gguf".to_owned(), b"GGUF".to_vec())]);
        let texts = BTreeMap::from([
            ("en/test.jsonl".to_owned(), rows.clone().into_bytes()),
            ("en/train.jsonl".to_owned(), b"{}".to_vec()),
            ("fr/train.jsonl".to_owned(), b"{}".to_vec()),
        ]);
        let questions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../qqq-eval/tests/questions");
        let subject = ["test-00000-of-00002", "test-00001-of-00002", "dev-00000-of-00001"].map(|name| {
            let name = format!("anatomy/{name}.parquet");
            let bytes = fs::read(questions.join(&name)).unwrap();
            (name, bytes)
        });
        let mut mmlu = BTreeMap::from(subject);
        mmlu.insert("all/test-00000-of-00001.parquet".into(), Vec::new());
        Self::start(BTreeMap::from([
            ("datasets/cais/mmlu".to_owned(), mmlu),
            ("models/acme/tiny".to_owned(), model),
            ("models/acme/ggufs".to_owned(), ggufs),
            ("datasets/acme/texts".to_owned(), texts),
        ]))
    }

    fn command(&self, place: &Place, home: &str) -> Command {
        let mut command = place.command();
        for name in [
            "HUGGING_FACE_HUB_TOKEN",
            "HF_TOKEN_PATH",
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "TRANSFORMERS_OFFLINE",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN",
            "HTTP_PROXY",
            "http_proxy",
            "ALL_PROXY",
            "all_proxy",
        ] {
            command.env_remove(name);
        }
        command
            .env("HF_ENDPOINT", &self.endpoint)
            .env("HF_HOME", place.path(home))
            .env("HF_HUB_OFFLINE", "0");
        command
    }

    fn run(&self, place: &Place, home: &str, variables: &[(&str, &str)], line: &[&str]) -> Run {
        let mut command = self.command(place, home);
        Run::of(command.envs(variables.iter().copied()).args(line).output().unwrap())
    }
}

fn answer(stream: &TcpStream, repos: &Repos, seen: &Mutex<Vec<Option<String>>>) {
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request).unwrap();
    let mut token = None;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) <= 2 {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("authorization")
        {
            token = Some(value.trim().to_owned());
        }
    }
    seen.lock().unwrap().push(token);
    let path = request.split(' ').nth(1).unwrap_or_default();
    let list = |rest: &str| {
        let (repo, revision) = rest.split_once("/revision/")?;
        // Models have others.
        let only = match repo {
            "datasets/ptb-text-only/ptb_text_only" => "refs%2Fconvert%2Fparquet",
            _ => "main",
        };
        if repo.starts_with("datasets/") && revision != only {
            return None;
        }
        let names: Vec<_> = repos.get(repo)?.keys().map(|name| json!({ "rfilename": name })).collect();
        Some(json!({ "sha": COMMIT, "siblings": names }).to_string().into_bytes())
    };
    let body = match path.strip_prefix("/api/") {
        Some(rest) => list(rest),
        None => path.trim_start_matches('/').split_once("/resolve/").and_then(|(repo, rest)| {
            let repo = if repo.starts_with("datasets/") { repo.to_owned() } else { format!("models/{repo}") };
            repos.get(&repo)?.get(rest.split_once('/')?.1).cloned()
        }),
    };
    let status = if body.is_some() { "200 OK" } else { "404 Not Found" };
    let body = body.unwrap_or_default();
    let tag = path.replace('/', "-");
    let head = format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\netag: \"{tag}\"\r\n\
         x-repo-commit: {COMMIT}\r\n\r\n",
        body.len()
    );
    let body = if request.starts_with("HEAD") { &[][..] } else { &body[..] };
    let _ = (&*stream).write_all(&[head.as_bytes(), body].concat());
}

const INSPECT: [&str; 3] = ["inspect", "--summary", "acme/tiny"];

#[test]
fn what_is_no_token_is_not_sent() {
    let place = Place::new();
    let hub = Hub::of(&place);
    fs::create_dir(place.path("home")).unwrap();
    fs::write(place.path("home/token"), "\n").unwrap();
    let sent = |home: &str, variables: &[(&str, &str)], options: &[&str]| {
        hub.tokens.lock().unwrap().clear();
        hub.run(&place, home, variables, &[&INSPECT[..], options].concat()).success();
        let mut tokens = hub.tokens.lock().unwrap().clone();
        tokens.dedup();
        tokens
    };
    let bearer = |token: &str| vec![Some(format!("Bearer {token}"))];
    assert_eq!(sent("home", &[("HF_TOKEN", "")], &[]), [None]);
    assert_eq!(sent("home", &[("HF_TOKEN", "  ")], &[]), [None]);
    assert_eq!(sent("home", &[], &["--token", ""]), [None]);
    assert_eq!(sent("home", &[("HF_TOKEN", "hf_abc\n")], &[]), bearer("hf_abc"));
    assert_eq!(sent("home", &[("HF_TOKEN", "hf_abc")], &["--token", "hf_given\r\n"]), bearer("hf_given"));
    fs::write(place.path("home/token"), "hf_file\n").unwrap();
    assert_eq!(sent("home", &[("HF_TOKEN", "")], &["--token", " "]), bearer("hf_file"));

    let run = hub.run(&place, "home", &[("HF_TOKEN", "hf secret")], &INSPECT);
    assert!(!run.stderr.contains("secret"), "{}", run.stderr);
    run.failure(1, "character 3 of 9 is a blank");
}

#[test]
fn files_in_folders_are_named_after_a_colon() {
    let place = Place::new();
    let hub = Hub::of(&place);
    // Four bytes are no model; that they are read is what counts.
    let run = hub.run(&place, "home", &[], &["inspect", "acme/ggufs:BF16/m-BF16.gguf"]);
    run.failure(2, "m-BF16.gguf: ");
    // Not the same as a path that was mistyped, nor as an address.
    hub.run(&place, "home", &[], &["inspect", "acme/tiny/x"]).failure(2, "no such file or directory");
    let run = hub.run(&place, "home", &[], &["inspect", &format!("{}/acme/tiny", hub.endpoint)]);
    assert!(run.stderr.contains("owner/name"), "{}", run.stderr);
    run.failure(2, "an address is not the name of a model");
}

#[test]
fn a_model_and_a_data_set_of_the_hub_make_a_checkpoint() {
    let place = Place::new();
    let hub = Hub::of(&place);
    let line = "quantize acme/tiny -o out --windows 2 --window 64 --calibration";
    let line = |source: &'static str| line.split(' ').chain([source]).collect::<Vec<_>>();
    let outcome = hub.run(&place, "home", &[], &[&line("acme/texts:en/test")[..], &["--json"]].concat());
    assert_eq!(outcome.success().json()["report"]["calibration_tokens"], 128);
    let read = |name: &str| fs::read_to_string(place.path("out").join(name)).unwrap();
    assert_eq!(read("LICENSE"), "terms");
    assert_eq!(read("additional_chat_templates/tool_use.jinja"), "{{ x }}");
    fs::remove_dir_all(place.path("out")).unwrap();
    // The model's revision is not the data set's.
    let of_revision = [&line("acme/texts:en/test")[..], &["--revision", "v1"]].concat();
    hub.run(&place, "home", &[], &of_revision).success();
    fs::remove_dir_all(place.path("out")).unwrap();
    hub.run(&place, "home", &[], &line("acme/texts:en/none")).failure(1, "no split \"none\"");
    hub.run(&place, "home", &[], &line("acme/texts")).failure(1, "en, fr");
    assert!(!place.path("out").exists());
}

#[test]
fn questions_come_from_the_hub_or_its_cache() {
    let place = Place::new();
    let hub = Hub::of(&place);
    let line = |rest: &'static str| {
        format!("eval tasks model --json --tasks {rest}").split(' ').map(str::to_owned).collect::<Vec<_>>()
    };
    let run = |variables: &[(&str, &str)], rest: &'static str| {
        let line = line(rest);
        hub.run(&place, "home", variables, &line.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let found = run(&[], "mmlu_anatomy --fewshot 1").success().json();
    let files = found["tasks"][0]["files"].as_array().unwrap();
    let snapshot = place.path("home/hub/datasets--cais--mmlu/snapshots").join(COMMIT);
    assert_eq!(files.len(), 3);
    assert_eq!(files[2]["file"], snapshot.join("anatomy/dev-00000-of-00001.parquet").to_str().unwrap());
    hub.tokens.lock().unwrap().clear();
    let again = run(&[("HF_HUB_OFFLINE", "1")], "mmlu_anatomy --fewshot 1").success().json();
    assert_eq!(again["tasks"][0]["acc"], found["tasks"][0]["acc"]);
    assert!(hub.tokens.lock().unwrap().is_empty());
    run(&[], "mmlu_virology").failure(1, "no configuration \"virology\"");
    run(&[], "piqa").failure(1, "cannot fetch the questions of piqa");
}

#[test]
fn without_network_the_cache_will_do() {
    let place = Place::new();
    let hub = Hub::of(&place);
    hub.run(&place, "home", &[], &INSPECT).success();
    let nowhere = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let run = hub.run(&place, "home", &[("HF_ENDPOINT", &nowhere)], &INSPECT).success();
    assert!(run.stderr.contains("taking what is in the cache"), "{}", run.stderr);
    hub.run(&place, "other", &[("HF_ENDPOINT", &nowhere)], &INSPECT).failure(1, "cannot reach");

    // Where else the cache may be, and words for offline; the hub is not asked.
    hub.tokens.lock().unwrap().clear();
    let cache = place.path("home/hub");
    let cache = cache.to_str().unwrap();
    let offline = [&INSPECT[..], &["--offline"]].concat();
    hub.run(&place, "other", &[("HF_HUB_CACHE", cache)], &offline).success();
    hub.run(&place, "other", &[("HUGGINGFACE_HUB_CACHE", cache)], &offline).success();
    hub.run(&place, "home", &[("HF_HUB_OFFLINE", "YES")], &INSPECT).success();
    hub.run(&place, "home", &[("HF_HUB_OFFLINE", ""), ("TRANSFORMERS_OFFLINE", "1")], &INSPECT).success();
    let refs = Path::new(cache).join("models--acme--tiny/refs/main");
    fs::write(&refs, format!("{COMMIT}\n")).unwrap();
    hub.run(&place, "home", &[], &offline).success();
    fs::remove_file(&refs).unwrap();
    let run = hub.run(&place, "home", &[], &offline).success();
    assert!(run.stderr.contains(COMMIT), "{}", run.stderr);
    assert!(hub.tokens.lock().unwrap().is_empty());
}

/// The mean loss of a model on a text is that of its records as papers join them.
#[test]
fn data_sets_of_papers_are_scored_as_papers_do() {
    let place = Place::new();
    let lines: Vec<&str> = TEXT.lines().collect();
    let rows = |field: &str, texts: &[&str]| -> Vec<u8> {
        texts.iter().map(|text| json!({ field: text }).to_string() + "\n").collect::<String>().into_bytes()
    };
    let many: Vec<&str> = (0..1200).map(|i| ["a b", "c", ""][i % 3]).collect();
    let file = |name: &str, content: Vec<u8>| BTreeMap::from([(name.to_owned(), content)]);
    let mut repos = BTreeMap::from([
        (
            "datasets/Salesforce/wikitext".to_owned(),
            file("wikitext-2-raw-v1/test.jsonl", rows("text", &lines)),
        ),
        ("datasets/allenai/c4".to_owned(), file("en/c4-validation.00000-of-00008.json", rows("text", &many))),
        (
            "datasets/ptb-text-only/ptb_text_only".to_owned(),
            file("penn_treebank/test/0000.jsonl", rows("sentence", &lines)),
        ),
    ]);
    repos.values_mut().for_each(|files| drop(files.insert("README.md".into(), b"of it".to_vec())));
    let hub = Hub::start(repos);
    let score = |options: &[&str]| {
        let line = [&["eval", "perplexity", "model", "--window", "64", "--json"][..], options].concat();
        hub.run(&place, "home", &[], &line).success().json()
    };
    for (name, text) in
        [("wikitext2", lines.join("\n\n")), ("c4", many[..1100].join(" ")), ("ptb", lines.join(" "))]
    {
        fs::write(place.path("joined.txt"), text).unwrap();
        let (of_set, of_text) = (score(&["--dataset", name]), score(&["--text", "joined.txt"]));
        assert_eq!(of_set["text"]["dataset"], name);
        assert_eq!(
            (&of_set["perplexity"], &of_set["tokens"]),
            (&of_text["perplexity"], &of_text["tokens"]),
            "{name}"
        );
        assert!(of_set["run"].get("inputs").is_none(), "{of_set}");
    }
    // A file of one's own, and what is none.
    fs::write(place.path("rows.jsonl"), rows("sentence", &lines)).unwrap();
    let own = score(&["--dataset", "ptb=rows.jsonl", "--limit", "2"]);
    assert_eq!((&own["text"]["path"], &own["windows"]), (&json!("rows.jsonl"), &json!(2)));
    for (options, says) in [
        ("--dataset wikitext2=rows.jsonl", "it has no field \"text\""),
        ("--dataset wikitext2=text.txt", "it is plain text"),
        ("--dataset wiki", "known are wikitext2, c4, ptb"),
        ("--dataset ptb --text text.txt", "cannot be used with"),
        ("--dataset ptb --text-field x", "cannot be used with"),
    ] {
        place.run(&format!("eval perplexity model --window 64 {options}")).failure(2, says);
    }
}
