//! Files that belong to a model besides its configuration and weights: tokenizer, chat templates, terms of use. They
//! are fetched with a model of the hub, and come along unchanged into what is made of it. Programs do not: nothing
//! here runs them, and who loads the result should not be made to.

use std::{fs, path::Path};

use qqq_formats::Inputs;

use crate::{ModelError, Result};

/// Files by their whole name.
const NAMES: [&str; 17] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "tokenizer.model.v3",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
    "qwen.tiktoken",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
];
/// Folders of such files, and how their names end.
const FOLDERS: [(&str, &str); 3] =
    [("additional_chat_templates", ".jinja"), ("LICENSES", ""), ("licenses", "")];
/// How names of terms of use begin, in capitals: Llama has LICENSE.txt and USE_POLICY.md, Gemma and others NOTICE.
const TERMS: [&str; 12] = [
    "LICENSE",
    "LICENCE",
    "UNLICENSE",
    "COPYING",
    "COPYRIGHT",
    "NOTICE",
    "USE_POLICY",
    "ACCEPTABLE_USE",
    "TERMS_OF_USE",
    "ATTRIBUTION",
    "THIRD_PARTY",
    "PATENTS",
];
/// What a file of terms is not, whatever its name.
const OTHER_KINDS: [&str; 8] = [".py", ".safetensors", ".bin", ".gguf", ".pt", ".pth", ".so", ".sh"];

/// Whether the model cannot be used without that file of it, if it has it: that of a tokenizer, say, and not a license.
pub fn is_needed(name: &str) -> bool {
    NAMES.contains(&name)
}

/// Whether a file of a model, named by its path within it, is one of those.
pub fn is_companion(name: &str) -> bool {
    match name.split_once('/') {
        Some((folder, file)) => {
            !file.contains('/') && FOLDERS.iter().any(|(f, end)| *f == folder && file.ends_with(end))
        }
        None => is_needed(name) || are_terms(name),
    }
}

fn are_terms(name: &str) -> bool {
    if OTHER_KINDS.iter().any(|end| name.ends_with(end)) {
        return false;
    }
    let name = name.to_uppercase().replace('-', "_");
    // A word of its own: "NOTICES.txt" too, but not "NOTICEABLE.csv".
    TERMS.iter().any(|t| {
        name.strip_prefix(t)
            .map(|rest| rest.strip_prefix('S').unwrap_or(rest))
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
    })
}

/// Copies them from the directory of one model to that of another; `inputs` are the first one's files.
///
/// # Errors
/// One of them cannot be read or was changed since it was read, or cannot be written.
pub fn copy(from: &Path, to: &Path, inputs: &Inputs) -> Result<()> {
    let folders = FOLDERS.iter().map(|(folder, _)| format!("{folder}/"));
    for folder in std::iter::once(String::new()).chain(folders) {
        // Not every model has every folder.
        for entry in fs::read_dir(from.join(&folder)).into_iter().flatten().flatten() {
            let Some(name) = entry.file_name().to_str().map(|n| format!("{folder}{n}")) else { continue };
            let source = entry.path();
            // Through links: a snapshot of the hub consists of them.
            if !is_companion(&name) || !source.is_file() {
                continue;
            }
            // Not fs::copy: the permissions of a read-only cache must not come along.
            let bytes = inputs.read(&source)?;
            let target = to.join(&name);
            let parent = target.parent().unwrap_or(to);
            fs::create_dir_all(parent).map_err(|e| io(parent, e))?;
            fs::write(&target, bytes).map_err(|e| io(&target, e))?;
        }
    }
    Ok(())
}

fn io(path: &Path, source: std::io::Error) -> ModelError {
    qqq_formats::FormatError::Io { path: path.into(), source }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_a_model() {
        for name in [
            "LICENSE",
            "LICENSE.txt",
            "license.md",
            "LICENCE",
            "LICENSE-APACHE",
            "LICENSE.llama3",
            "COPYING",
            "Notice.txt",
            "NOTICES.md",
            "USE_POLICY.md",
            "use-policy.pdf",
            "THIRD_PARTY_NOTICES.txt",
            "LICENSES/MIT.txt",
            "additional_chat_templates/tool_use.jinja",
            "generation_config.json",
            "added_tokens.json",
            "tokenizer.model",
        ] {
            assert!(is_companion(name), "{name}");
        }
        for name in [
            "config.json",
            "README.md",
            "modeling_custom.py",
            "license.py",
            "licensed_data.csv",
            "NOTICEABLE.csv",
            "model.safetensors",
            "notice.safetensors",
            "additional_chat_templates/tool_use.py",
            "additional_chat_templates/a/b.jinja",
            "original/LICENSE",
            "model.safetensors.index.json",
        ] {
            assert!(!is_companion(name), "{name}");
        }
    }

    #[test]
    fn copies_are_complete_and_writable() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(from.path().join("additional_chat_templates")).unwrap();
        for name in ["LICENSE", "config.json", "run.py", "additional_chat_templates/rag.jinja"] {
            fs::write(from.path().join(name), name).unwrap();
        }
        let read_only = from.path().join("LICENSE");
        let mut permissions = fs::metadata(&read_only).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&read_only, permissions).unwrap();
        // A folder of that name is no file.
        fs::create_dir(from.path().join("NOTICE")).unwrap();

        copy(from.path(), to.path(), &Inputs::default()).unwrap();
        let read = |name: &str| fs::read_to_string(to.path().join(name)).ok();
        assert_eq!(read("LICENSE").as_deref(), Some("LICENSE"));
        assert!(!fs::metadata(to.path().join("LICENSE")).unwrap().permissions().readonly());
        assert!(read("additional_chat_templates/rag.jinja").is_some());
        assert_eq!((read("config.json"), read("run.py")), (None, None));
        assert!(!to.path().join("NOTICE").exists());
        // Nothing to copy is no error.
        copy(&from.path().join("none"), to.path(), &Inputs::default()).unwrap();
    }
}
