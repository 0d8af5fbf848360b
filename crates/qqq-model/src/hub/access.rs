//! Whether there is a way to the hub, for who looks for what a machine lacks.

use std::{
    path::PathBuf,
    sync::mpsc,
    time::{Duration, Instant},
};

use super::{HubOptions, environment::Settings, error, http::Http};
use crate::Result;

/// What the environment says of the hub.
#[derive(Clone, Debug)]
pub struct HubAccess {
    settings: Settings,
}

impl HubAccess {
    /// As downloads read the environment.
    ///
    /// # Errors
    /// Variables that downloads refuse; the text names them.
    pub fn of_user() -> Result<Self> {
        Ok(Self { settings: Settings::from_env(&HubOptions::default())? })
    }

    /// Where downloads are kept.
    pub fn cache(&self) -> PathBuf {
        self.settings.cache.clone()
    }

    /// Address of the hub.
    pub fn endpoint(&self) -> &str {
        &self.settings.endpoint
    }

    /// Whether the environment forbids the network.
    pub fn is_offline(&self) -> bool {
        self.settings.offline
    }

    /// Whether there is an access token, which private and gated models need.
    pub fn has_token(&self) -> bool {
        self.settings.token.is_some()
    }

    /// Asks the hub for the headers of its first page; returns how long that took, at most `limit`.
    ///
    /// # Errors
    /// Why there was no answer.
    pub fn reach(&self, limit: Duration) -> Result<Duration> {
        let mut settings = self.settings.clone();
        settings.patience = limit;
        // Whether the hub answers is no matter of who asks.
        settings.token = None;
        let (send, receive) = mpsc::channel();
        let started = Instant::now();
        // Not every step of a connection has a limit of its own: a thread that waits longer is left alone.
        std::thread::spawn(move || {
            let answer = Http::new(&settings).and_then(|http| match http.head("/") {
                // An answer is an answer, whatever it says of the page.
                Err(fault) if fault.is_outage() => Err(error(fault.to_string())),
                _ => Ok(started.elapsed()),
            });
            // Nobody listens any more if it took too long.
            let _ = send.send(answer);
        });
        receive.recv_timeout(limit).unwrap_or_else(|_| {
            Err(error(format!("{} does not answer within {} s", self.endpoint(), limit.as_secs_f64())))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
    };

    use super::*;

    fn access(endpoint: String) -> HubAccess {
        let get = |name: &str| match name {
            "HOME" => Some("/nowhere".into()),
            "HF_ENDPOINT" => Some(endpoint.clone().into()),
            _ => None,
        };
        HubAccess { settings: Settings::read(&HubOptions::default(), &get).unwrap() }
    }

    #[test]
    fn a_hub_answers_or_does_not() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", server.local_addr().unwrap());
        let hub = access(address.clone());
        assert_eq!((hub.endpoint(), hub.is_offline(), hub.has_token()), (address.as_str(), false, false));
        std::thread::scope(|s| {
            s.spawn(|| {
                let (mut connection, _) = server.accept().unwrap();
                let _ = connection.read(&mut [0; 1024]).unwrap();
                connection.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").unwrap();
            });
            hub.reach(Duration::from_secs(20)).unwrap();
        });
        // Nobody takes the next connection.
        let silent = hub.reach(Duration::from_millis(200)).unwrap_err().to_string();
        assert!(silent.contains("does not answer"), "{silent}");
        drop(server);
        let gone = hub.reach(Duration::from_secs(20)).unwrap_err().to_string();
        assert!(gone.contains("refuses connections"), "{gone}");
    }
}
