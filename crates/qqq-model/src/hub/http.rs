//! Requests to the hub, and what has gone wrong when one fails.

use std::{io, path::Path, sync::Arc, time::Duration};

use ureq::{
    Agent, Body,
    http::{HeaderMap, Response, Uri},
    tls::{PemItem, RootCerts, TlsConfig, parse_pem},
};

use super::{environment::Settings, error};
use crate::Result;

/// How long it may take to find a server and to greet it.
const CONNECTING: Duration = Duration::from_secs(10);
/// Redirections that are followed.
const MAX_REDIRECTS: usize = 10;

/// Why a request or a transfer has failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The server has answered, with this status.
    #[error("HTTP status {status}")]
    Status {
        /// 4xx or 5xx.
        status: u16,
        /// The hub's own name of the reason (`X-Error-Code`), as `GatedRepo`.
        code: Option<String>,
        /// The hub's own words (`X-Error-Message`).
        message: Option<String>,
    },
    /// There is no way to the server.
    #[error("{0}")]
    Unreachable(String),
    /// The proxy refuses.
    #[error("{0}")]
    Proxy(String),
    /// No secure connection.
    #[error("{0}")]
    Tls(String),
    /// The server has been silent for too long.
    #[error("{0}")]
    Timeout(String),
    /// The connection ended early.
    #[error("{0}")]
    Lost(String),
    /// What was sent is not what was announced or asked for.
    #[error("{0}")]
    Content(String),
    /// The disk. Not the network: the two have different ways out.
    #[error("{path}: {source}", path = .path.display())]
    Disk {
        /// File or directory concerned.
        path: std::path::PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl Fault {
    pub fn disk(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Disk { path: path.into(), source }
    }

    /// Whether trying again at once may help.
    pub fn is_passing(&self) -> bool {
        match self {
            Fault::Lost(_) | Fault::Timeout(_) => true,
            Fault::Status { status, .. } => matches!(status, 408 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// Whether the network or the server fails, rather than the request: what is in the cache may do then.
    pub fn is_outage(&self) -> bool {
        match self {
            Fault::Status { status, .. } => matches!(status, 407 | 408 | 429 | 500..),
            Fault::Disk { .. } => false,
            _ => true,
        }
    }
}

/// A client for one hub.
#[derive(Debug)]
pub(super) struct Http {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

impl Http {
    pub fn new(settings: &Settings) -> Result<Self> {
        let patience = Some(settings.patience);
        // Where packets vanish, nobody should wait long for the cache to be used.
        let connecting = Some(settings.patience.min(CONNECTING));
        let mut config = Agent::config_builder()
            .user_agent(concat!("qqq/", env!("CARGO_PKG_VERSION")))
            // Sizes are compared with what arrives.
            .accept_encoding("identity")
            .http_status_as_error(false)
            // Followed here, because the headers of those on the way count, and the token must not travel.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(connecting)
            .timeout_connect(connecting)
            .timeout_recv_response(patience)
            .timeout_per_read(patience);
        if let Some(path) = &settings.certificates {
            config = config.tls_config(TlsConfig::builder().root_certs(certificates(path)?).build());
        }
        let agent = config.build().new_agent();
        Ok(Self { agent, endpoint: settings.endpoint.clone(), token: settings.token.clone() })
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The headers of `path` on the hub. Redirections within the hub are followed, others are not: their headers
    /// tell of the file, those of a store behind it do not.
    pub fn head(&self, path: &str) -> Result<Response<Body>, Fault> {
        match self.request(path, true, None) {
            // A server that knows no HEAD says the same before the content.
            Err(Fault::Status { status: 405 | 501, .. }) => self.request(path, false, None),
            other => other,
        }
    }

    /// The content of `path` on the hub, from byte `start` if the server can.
    pub fn get(&self, path: &str, start: u64) -> Result<Response<Body>, Fault> {
        self.request(path, false, (start > 0).then(|| format!("bytes={start}-")))
    }

    fn request(&self, path: &str, head: bool, range: Option<String>) -> Result<Response<Body>, Fault> {
        let mut url = format!("{}{path}", self.endpoint);
        for _ in 0..=MAX_REDIRECTS {
            let mut request = if head { self.agent.head(&url) } else { self.agent.get(&url) };
            if let Some(token) = self.token.as_ref().filter(|_| same_host(&url, &self.endpoint)) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            if let Some(range) = &range {
                request = request.header("Range", range);
            }
            let response = request.call().map_err(|e| self.fault(e, &url))?;
            let status = response.status().as_u16();
            match (status, header(response.headers(), "location")) {
                (301 | 302 | 303 | 307 | 308, Some(location)) => {
                    let next = joined(&url, location);
                    if head && !same_host(&next, &self.endpoint) {
                        return Ok(response);
                    }
                    url = next;
                }
                (200..=299 | 416, _) => return Ok(response),
                _ => {
                    let text = |name: &str| header(response.headers(), name).map(plain);
                    return Err(Fault::Status {
                        status,
                        code: text("x-error-code"),
                        message: text("x-error-message"),
                    });
                }
            }
        }
        Err(Fault::Content(format!("more than {MAX_REDIRECTS} redirections, the last to {url}")))
    }

    /// Sorts out an error of the client.
    pub fn fault(&self, e: ureq::Error, url: &str) -> Fault {
        let host = host(url);
        let proxy = self.agent.config().proxy();
        let proxy = proxy.filter(|p| !url.parse::<Uri>().is_ok_and(|u| p.is_no_proxy(&u)));
        // Who was connected to, without the name and password that its address may hold.
        let peer = proxy.map_or(host.clone(), |p| {
            format!("the proxy {}:{} (HTTPS_PROXY, HTTP_PROXY or ALL_PROXY)", p.host(), p.port())
        });
        let through = if proxy.is_some() { format!(" through {peer}") } else { String::new() };
        match e {
            ureq::Error::Timeout(_) => Fault::Timeout(format!("{host} does not answer in time{through}")),
            ureq::Error::HostNotFound => Fault::Unreachable(format!("the name of {peer} is not known")),
            ureq::Error::Io(e) => io_fault(&e, &host, &peer, &through),
            ureq::Error::InvalidProxyUrl | ureq::Error::ConnectProxyFailed(_) => {
                Fault::Proxy(format!("cannot connect to {host}{through}: {e}"))
            }
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Pem(_) => tls_fault(&e, &host),
            ureq::Error::ConnectionFailed => Fault::Unreachable(format!("no connection to {host}{through}")),
            ureq::Error::Protocol(_) | ureq::Error::BodyStalled => {
                Fault::Content(format!("{host} does not speak HTTP as it should: {e}"))
            }
            e => Fault::Unreachable(format!("{host}: {e}{through}")),
        }
    }
}

/// What an error of a connection means; `peer` is who was connected to, for `host`.
fn io_fault(e: &io::Error, host: &str, peer: &str, through: &str) -> Fault {
    use io::ErrorKind as K;
    let text = e.to_string();
    match e.kind() {
        K::UnexpectedEof | K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe | K::NotConnected => {
            Fault::Lost(format!("the connection to {host}{through} was lost: {e}"))
        }
        K::TimedOut | K::WouldBlock => Fault::Timeout(format!("{host} does not answer in time{through}")),
        K::ConnectionRefused => Fault::Unreachable(format!("{peer} refuses connections: {e}")),
        K::InvalidData => tls_fault(e, host),
        // The standard library has no kind for it.
        _ if text.contains("lookup address") => {
            Fault::Unreachable(format!("the name of {peer} is not known: {e}"))
        }
        _ => Fault::Unreachable(format!("no connection to {host}{through}: {e}")),
    }
}

fn tls_fault(e: &dyn std::error::Error, host: &str) -> Fault {
    let way_out = if e.to_string().contains("certificate") {
        "if this network inspects its traffic, name the file of its certificates with SSL_CERT_FILE"
    } else {
        "it may not speak https"
    };
    Fault::Tls(format!("no secure connection to {host}: {e}; {way_out}"))
}

/// Certificates of a PEM file.
fn certificates(path: &Path) -> Result<RootCerts> {
    let bytes = std::fs::read(path)
        .map_err(|e| error(format!("{}: the certificates to trust cannot be read: {e}", path.display())))?;
    let found: Vec<_> = parse_pem(&bytes)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(c)) => Some(c),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        return Err(error(format!("{}: there are no certificates in PEM form in it", path.display())));
    }
    Ok(RootCerts::Specific(Arc::new(found)))
}

/// A header as text.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// What a server says, fit for a line of ours.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

/// Scheme, host and port.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |i| i + 3);
    url[start..].find(['/', '?', '#']).map_or(url, |i| &url[..start + i])
}

fn same_host(a: &str, b: &str) -> bool {
    origin(a).eq_ignore_ascii_case(origin(b))
}

/// Host and port.
fn host(url: &str) -> String {
    let origin = origin(url);
    let host = origin.split_once("://").map_or(origin, |(_, host)| host);
    // Not what may stand before it: a name and a password.
    host.rsplit_once('@').map_or(host, |(_, host)| host).to_owned()
}

/// Where a redirection leads.
fn joined(url: &str, location: &str) -> String {
    if location.contains("://") {
        return location.to_owned();
    }
    let scheme = url.split_once("://").map_or("https", |(scheme, _)| scheme);
    if location.starts_with("//") {
        return format!("{scheme}:{location}");
    }
    if location.starts_with('/') {
        return format!("{}{location}", origin(url));
    }
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let folder = path.rfind('/').filter(|i| *i >= origin(url).len()).map_or(path, |i| &path[..i]);
    format!("{folder}/{location}")
}

/// A path's part for an address: all but letters, digits and `-_.~` as `%XX`.
pub(super) fn escaped(part: &str) -> String {
    let mut text = String::new();
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirections() {
        let url = "https://hub.example:8/a/b?x=/y";
        assert_eq!(joined(url, "https://cdn.example/z"), "https://cdn.example/z");
        assert_eq!(joined(url, "//cdn.example/z"), "https://cdn.example/z");
        assert_eq!(joined(url, "/z"), "https://hub.example:8/z");
        assert_eq!(joined(url, "z"), "https://hub.example:8/a/z");
        assert_eq!(joined("http://hub.example", "z"), "http://hub.example/z");
        assert!(same_host(url, "https://HUB.example:8"));
        for other in
            ["http://hub.example:8/a", "https://hub.example/a", "https://hub.example:8.evil.example/"]
        {
            assert!(!same_host(url, other), "{other}");
        }
        assert_eq!(host("http://name:password@hub.example:8/x"), "hub.example:8");
        assert_eq!(escaped("a b/ü#%.json"), "a%20b%2F%C3%BC%23%25.json");
    }

    #[test]
    fn causes() {
        let fault = |kind: io::ErrorKind| io_fault(&io::Error::from(kind), "h", "h", "");
        assert!(matches!(fault(io::ErrorKind::ConnectionReset), Fault::Lost(_)));
        assert!(matches!(fault(io::ErrorKind::TimedOut), Fault::Timeout(_)));
        assert!(matches!(fault(io::ErrorKind::ConnectionRefused), Fault::Unreachable(_)));
        let no_name = io::Error::other("failed to lookup address information: Name or service not known");
        assert!(io_fault(&no_name, "h", "h", "").to_string().contains("name of h is not known"));
        let bad = io::Error::new(io::ErrorKind::InvalidData, "invalid peer certificate: UnknownIssuer");
        assert!(io_fault(&bad, "h", "h", "").to_string().contains("SSL_CERT_FILE"));
        // A proxy that is down is not the hub's fault.
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let text = io_fault(&refused, "h", "the proxy p", " through the proxy p").to_string();
        assert!(text.starts_with("the proxy p refuses connections"), "{text}");
        let status = |status| Fault::Status { status, code: None, message: None };
        assert!(status(503).is_passing() && status(503).is_outage());
        assert!(!status(429).is_passing() && status(429).is_outage());
        for status in [401, 403, 404].map(status) {
            assert!(!status.is_passing() && !status.is_outage());
        }
        let full = Fault::disk(Path::new("x"))(io::ErrorKind::StorageFull.into());
        assert!(!full.is_passing() && !full.is_outage());
    }
}
