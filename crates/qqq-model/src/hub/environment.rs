//! What the environment says of the hub, read as the `huggingface_hub` library of Python reads it.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{HubOptions, error};
use crate::Result;

const HUB: &str = "https://huggingface.co";
/// How long a server may be silent.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the hub is, and how to use it.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Directory of repositories.
    pub cache: PathBuf,
    /// Address without a slash at its end.
    pub endpoint: String,
    /// Fit for a header.
    pub token: Option<String>,
    /// Whether only what the hub's cache has may be used.
    pub offline: bool,
    /// How long a server may be silent.
    pub patience: Duration,
    /// Certificates to trust instead of Mozilla's.
    pub certificates: Option<PathBuf>,
}

impl Settings {
    /// `options` go before the environment.
    pub fn from_env(options: &HubOptions) -> Result<Self> {
        Self::read(options, &|name| std::env::var_os(name))
    }

    /// `get` gives the variables of the environment.
    pub fn read(options: &HubOptions, get: &dyn Fn(&str) -> Option<OsString>) -> Result<Self> {
        // What is set to nothing counts as not set: that is how a line of a script turns a variable off.
        let set = |name: &str| get(name).filter(|v| !v.is_empty());
        let text = |name: &str| match set(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(v)) => Ok(Some(v.trim().to_owned()).filter(|v| !v.is_empty())),
            Some(Err(v)) => Err(error(format!("{name}: {v:?} is not UTF-8"))),
        };
        let path = |name: &str| set(name).map(|v| expanded(v, get));

        let home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|dir| dir.join("huggingface")))
            .or_else(|| user_home(get).map(|dir| dir.join(".cache/huggingface")));
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| home.as_ref().map(|dir| dir.join("hub")));
        let Some(cache) = cache else {
            return Err(error(
                "there is no home directory for the hub's cache; set HF_HOME to a directory".into(),
            ));
        };
        let token_file = path("HF_TOKEN_PATH").or_else(|| home.map(|dir| dir.join("token")));
        let offline =
            options.offline || is_true(set("HF_HUB_OFFLINE").or_else(|| set("TRANSFORMERS_OFFLINE")));
        let endpoint = text("HF_ENDPOINT")?.unwrap_or_else(|| HUB.into()).trim_end_matches('/').to_owned();
        // Offline nobody is asked.
        if !offline && !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
            return Err(error(format!(
                "HF_ENDPOINT: {endpoint:?} is no address, which begins with https://"
            )));
        }
        let patience = match text("HF_HUB_DOWNLOAD_TIMEOUT")? {
            None => None,
            Some(seconds) => match seconds.parse() {
                Ok(seconds) => Some(seconds).filter(|s| *s > 0),
                Err(_) => {
                    return Err(error(format!(
                        "HF_HUB_DOWNLOAD_TIMEOUT: {seconds:?} is no number of seconds: give a whole one, or 0 for the usual \
                         {}",
                        PATIENCE.as_secs()
                    )));
                }
            },
        };
        Ok(Self {
            cache,
            endpoint,
            token: if offline { None } else { token(options, &set, token_file.as_deref())? },
            offline,
            patience: patience.map_or(PATIENCE, Duration::from_secs),
            certificates: ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
                .into_iter()
                .find_map(path),
        })
    }
}

/// The values that the hub's own library takes for yes; all others are no.
fn is_true(value: Option<OsString>) -> bool {
    let value = value.and_then(|v| v.into_string().ok()).unwrap_or_default();
    ["1", "ON", "YES", "TRUE"].contains(&&*value.to_uppercase())
}

fn user_home(get: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    ["HOME", "USERPROFILE"]
        .into_iter()
        .find_map(|name| get(name).filter(|v| !v.is_empty()))
        .map(PathBuf::from)
}

/// With `~` at its beginning, `$NAME` and `${NAME}` replaced; names that are not set stay.
fn expanded(path: OsString, get: &dyn Fn(&str) -> Option<OsString>) -> PathBuf {
    let Some(text) = path.to_str() else { return path.into() };
    let mut result = String::new();
    let mut rest = text;
    if let Some(below) = text.strip_prefix('~')
        && (below.is_empty() || below.starts_with('/'))
        && let Some(home) = user_home(get).and_then(|h| h.to_str().map(str::to_owned))
    {
        result.push_str(&home);
        rest = below;
    }
    while let Some((before, after)) = rest.split_once('$') {
        result.push_str(before);
        let braced = after.strip_prefix('{').and_then(|a| a.split_once('}'));
        let plain = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
        let (name, tail) = braced.unwrap_or(after.split_at(plain));
        match get(name).filter(|_| !name.is_empty()).and_then(|v| v.into_string().ok()) {
            Some(value) => {
                result.push_str(&value);
                rest = tail;
            }
            None => {
                result.push('$');
                rest = after;
            }
        }
    }
    result.push_str(rest);
    result.into()
}

/// The first of what can serve as a token: the option, the environment, the file of the hub's own tools.
fn token(
    options: &HubOptions,
    set: &dyn Fn(&str) -> Option<OsString>,
    file: Option<&Path>,
) -> Result<Option<String>> {
    if let Some(token) = &options.token
        && let Some(token) = clean_token(token.as_bytes(), "--token")?
    {
        return Ok(Some(token));
    }
    if is_true(set("HF_HUB_DISABLE_IMPLICIT_TOKEN")) {
        return Ok(None);
    }
    // The second is an older name of the first.
    if let Some((name, value)) =
        ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].into_iter().find_map(|name| Some((name, set(name)?)))
        && let Some(token) = clean_token(value.as_encoded_bytes(), name)?
    {
        return Ok(Some(token));
    }
    let Some(file) = file else { return Ok(None) };
    match std::fs::read(file) {
        Ok(bytes) => clean_token(&bytes, &file.display().to_string()),
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(e) => {
            tracing::warn!(
                "{}: the hub's access token cannot be read: {e}; going on without it",
                file.display()
            );
            Ok(None)
        }
    }
}

/// A token without line ends and blanks around it; `None` if nothing is left. Its characters are those of a bearer
/// token in RFC 6750, section 2.1.
///
/// # Errors
/// Others, which no header could carry or no server would know. The text does not show the token.
fn clean_token(bytes: &[u8], place: &str) -> Result<Option<String>> {
    let kept: Vec<u8> = bytes.iter().copied().filter(|b| !b"\r\n".contains(b)).collect();
    let token = kept.trim_ascii();
    let is_allowed = |b: &u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(b);
    if let Some(at) = token.iter().position(|b| !is_allowed(b)) {
        let what = match token[at] {
            b' ' | b'\t' => "a blank",
            b'"' | b'\'' => "a quotation mark",
            0..=31 | 127 => "a control character",
            128.. => "a character beyond ASCII",
            _ => "a punctuation mark",
        };
        return Err(error(format!(
            "the hub's access token in {place} is not one: character {} of {} is {what}; copy it again from \
             {HUB}/settings/tokens",
            at + 1,
            token.len()
        )));
    }
    // Bytes of ASCII.
    Ok(String::from_utf8(token.to_vec()).ok().filter(|t| !t.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(options: &HubOptions, variables: &[(&str, &str)]) -> Result<Settings> {
        let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
        Settings::read(options, &get)
    }

    fn with(variables: &[(&str, &str)]) -> Settings {
        settings(&HubOptions::default(), variables).unwrap()
    }

    /// As huggingface_hub 2.4 answers for the same variables (constants.HF_HUB_CACHE).
    #[test]
    fn the_cache_is_where_the_hubs_own_tools_have_it() {
        let cache = |variables: &[(&str, &str)]| with(variables).cache.to_str().unwrap().to_owned();
        assert_eq!(cache(&[("HOME", "/u")]), "/u/.cache/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")]), "/h/hub");
        assert_eq!(cache(&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")]), "/old");
        assert_eq!(cache(&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")]), "/new");
        assert_eq!(cache(&[("HOME", "/u"), ("HF_HOME", "~/hf")]), "/u/hf/hub");
        assert_eq!(cache(&[("D", "/d"), ("HF_HUB_CACHE", "$D/${D}x/$NONE/c")]), "/d//dx/$NONE/c");
        assert_eq!(cache(&[("HOME", "/u"), ("HF_HUB_CACHE", "~other/c")]), "~other/c");
        // Set to nothing: as not set.
        assert_eq!(
            cache(&[("HOME", "/u"), ("HF_HOME", ""), ("HF_HUB_CACHE", "")]),
            "/u/.cache/huggingface/hub"
        );
        assert!(settings(&HubOptions::default(), &[]).unwrap_err().to_string().contains("HF_HOME"));
    }

    /// As huggingface_hub 2.4 answers (constants.HF_HUB_OFFLINE).
    #[test]
    fn words_for_offline() {
        let offline = |variables: &[(&str, &str)]| with(&[&[("HOME", "/u")], variables].concat()).offline;
        for yes in ["1", "ON", "on", "YES", "Yes", "TRUE", "true"] {
            assert!(offline(&[("HF_HUB_OFFLINE", yes)]), "{yes}");
            assert!(offline(&[("TRANSFORMERS_OFFLINE", yes)]), "{yes}");
        }
        for no in ["", "0", "OFF", "no", "false", "2", "y", "t", "enabled", " 1 "] {
            assert!(!offline(&[("HF_HUB_OFFLINE", no)]), "{no}");
        }
        assert!(
            !offline(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]),
            "the first that is set counts"
        );
        assert!(offline(&[("HF_HUB_OFFLINE", ""), ("TRANSFORMERS_OFFLINE", "1")]));
        let asked = HubOptions { offline: true, ..HubOptions::default() };
        assert!(settings(&asked, &[("HOME", "/u"), ("HF_HUB_OFFLINE", "0")]).unwrap().offline);
    }

    #[test]
    fn other_hubs() {
        let endpoint = |e: &str| {
            settings(&HubOptions::default(), &[("HOME", "/u"), ("HF_ENDPOINT", e)]).map(|s| s.endpoint)
        };
        assert_eq!(endpoint("").unwrap(), HUB);
        assert_eq!(endpoint(" https://mirror.example/hf/ ").unwrap(), "https://mirror.example/hf");
        assert!(endpoint("mirror.example").unwrap_err().to_string().contains("HF_ENDPOINT"));
    }

    #[test]
    fn patience_is_a_number_of_seconds() {
        let patience = |t: &str| {
            let variables = [("HOME", "/u"), ("HF_HUB_DOWNLOAD_TIMEOUT", t)];
            settings(&HubOptions::default(), &variables).map(|s| s.patience.as_secs())
        };
        assert_eq!((patience("7").unwrap(), patience(" 90 ").unwrap()), (7, 90));
        assert_eq!((patience("").unwrap(), patience("0").unwrap()), (30, 30));
        for bad in ["soon", "1.5", "-1", "10s"] {
            let error = patience(bad).unwrap_err().to_string();
            assert!(error.contains("HF_HUB_DOWNLOAD_TIMEOUT") && error.contains(bad), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn an_address_that_is_no_text_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        let get = |name: &str| match name {
            "HOME" => Some("/u".into()),
            "HF_ENDPOINT" => Some(OsString::from_vec(b"https://m\xff".to_vec())),
            _ => None,
        };
        let error = Settings::read(&HubOptions::default(), &get).unwrap_err().to_string();
        assert!(error.contains("HF_ENDPOINT") && error.contains("not UTF-8"), "{error}");
    }

    #[test]
    fn what_is_no_token_is_none() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().to_str().unwrap();
        let file = format!("{home}/token");
        let ask = |option: Option<&str>, variables: &[(&str, &str)]| {
            let options = HubOptions { token: option.map(str::to_owned), ..HubOptions::default() };
            settings(&options, &[&[("HF_HOME", home)], variables].concat()).map(|s| s.token)
        };
        let some = |token: &str| Some(token.to_owned());
        for nothing in ["", " ", "\n", " \r\n "] {
            assert_eq!(ask(Some(nothing), &[]).unwrap(), None, "{nothing:?}");
            assert_eq!(ask(None, &[("HF_TOKEN", nothing)]).unwrap(), None, "{nothing:?}");
            std::fs::write(&file, nothing).unwrap();
            assert_eq!(ask(None, &[]).unwrap(), None, "{nothing:?}");
        }
        for token in ["hf_abc", "hf_abc\n", " hf_abc\r\n", "hf_\nabc"] {
            assert_eq!(ask(Some(token), &[]).unwrap(), some("hf_abc"), "{token:?}");
            assert_eq!(ask(None, &[("HF_TOKEN", token)]).unwrap(), some("hf_abc"), "{token:?}");
            std::fs::write(&file, token).unwrap();
            assert_eq!(ask(None, &[]).unwrap(), some("hf_abc"), "{token:?}");
        }
        std::fs::write(&file, "of-file\n").unwrap();
        assert_eq!(ask(Some("given"), &[("HF_TOKEN", "set")]).unwrap(), some("given"));
        assert_eq!(ask(Some(""), &[("HF_TOKEN", "set")]).unwrap(), some("set"));
        assert_eq!(ask(None, &[("HF_TOKEN", " ")]).unwrap(), some("of-file"));
        assert_eq!(ask(None, &[("HUGGING_FACE_HUB_TOKEN", "old-name")]).unwrap(), some("old-name"));
        assert_eq!(ask(None, &[("HF_TOKEN_PATH", "/none")]).unwrap(), None);
        assert_eq!(ask(None, &[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"), ("HF_TOKEN", "set")]).unwrap(), None);
        let jwt = "eyJhbGciOi.J9-_x+/=~";
        assert_eq!(ask(Some(jwt), &[]).unwrap(), some(jwt));
        // The token lies in the hub's home, wherever its cache is.
        assert_eq!(ask(None, &[("HF_HUB_CACHE", "/elsewhere")]).unwrap(), some("of-file"));
    }

    #[test]
    fn impossible_tokens_are_refused_and_not_shown() {
        let home = tempfile::tempdir().unwrap();
        let ask = |token: &str| {
            let variables = [("HF_HOME", home.path().to_str().unwrap()), ("HF_TOKEN", token)];
            settings(&HubOptions::default(), &variables).unwrap_err().to_string()
        };
        for (token, what) in [
            ("\"hf_secret\"", "character 1 of 11 is a quotation mark"),
            ("Bearer hf_secret", "character 7 of 16 is a blank"),
            ("hf_secret\u{e9}", "beyond ASCII"),
            ("hf_secret\u{7}", "a control character"),
            ("hf_secret,hf_secret", "a punctuation mark"),
        ] {
            let e = ask(token);
            assert!(e.contains(what) && e.contains("HF_TOKEN"), "{e}");
            assert!(!e.contains("secret"), "{e}");
        }
        std::fs::write(home.path().join("token"), b"hf_secret\xff").unwrap();
        let e = ask("").to_string();
        assert!(e.contains("beyond ASCII") && e.contains("token") && !e.contains("secret"), "{e}");
    }
}
