//! The way to the Hugging Face hub.

use std::time::Duration;

use qqq_model::hub::HubAccess;
use serde_json::json;

use super::Finding;

/// How long the hub may take to answer.
const LIMIT: Duration = Duration::from_secs(3);
const WHAT: &str = "hub";
const COST: &str = "models and data sets that are not in the cache cannot be fetched";

pub(super) fn look() -> Vec<Finding> {
    vec![access()]
}

fn access() -> Finding {
    let hub = match HubAccess::of_user() {
        Ok(hub) => hub,
        Err(e) => return Finding::lack(WHAT, e.to_string(), COST, "set the variable anew, or unset it"),
    };
    let details = |seconds: Option<f64>| {
        json!({
            "endpoint": hub.endpoint(), "offline": hub.is_offline(), "token": hub.has_token(),
            "seconds": seconds,
        })
    };
    if hub.is_offline() {
        let found = "not asked: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids the network";
        return Finding::lack(WHAT, found, COST, "unset it").with(details(None));
    }
    let token = match hub.has_token() {
        true => "with an access token",
        false => "without an access token, which gated models need (HF_TOKEN)",
    };
    match hub.reach(LIMIT) {
        Ok(time) => {
            let found = format!("{} answers in {:.1} s; {token}", hub.endpoint(), time.as_secs_f64());
            Finding::ok(WHAT, found).with(details(Some(time.as_secs_f64())))
        }
        Err(e) => Finding::lack(
            WHAT,
            e.to_string(),
            COST,
            "a network; HTTPS_PROXY names a proxy, SSL_CERT_FILE certificates, HF_ENDPOINT another hub",
        )
        .with(details(None)),
    }
}
