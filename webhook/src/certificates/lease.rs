//! Who leads: one Lease, as client-go's leader election keeps it, so that tools know it.
//!
//! A holder that has not renewed for the Lease's time, as far as we have seen by our own clock, has lost it. Leadership
//! spares work and log lines; safety needs none of it (`certs/src/machine.rs`, invariant 4).
//!
//! Requests are sent by hand, for the sake of one header: the `Date` of the answer is the API server's clock.

use std::time::{Duration, Instant, SystemTime};

use axum::http::{Method, Request, header};
use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::fmt::rfc2822::DateTimeParser;
use kube::Client;
use kube::client::Body;
use kube::core::ObjectMeta;
use nodestub_certs::clock::Clock;

/// How long a holder may be silent, at most.
const MAX_TERM: Duration = Duration::from_secs(15);
/// And at least: the Lease counts in seconds.
const MIN_TERM: Duration = Duration::from_secs(2);

/// Our view of one Lease.
pub(super) struct Lease {
    client: Client,
    path: String,
    name: String,
    identity: String,
    term: Duration,
    /// The holder and its last sign of life, and since when we have seen that.
    seen: Option<(String, Option<Timestamp>, Instant)>,
    leads_until: Option<Instant>,
}

impl Lease {
    pub(super) fn new(
        client: &Client,
        namespace: &str,
        name: &str,
        identity: String,
        leaf: Duration,
    ) -> Self {
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases");
        // Short-lived certificates cannot wait long for a new leader.
        let term = (leaf / 4).clamp(MIN_TERM, MAX_TERM);
        let (client, name) = (client.clone(), name.to_owned());
        Self { client, path, name, identity, term, seen: None, leads_until: None }
    }

    pub(super) fn leads(&self) -> bool {
        self.leads_until.is_some_and(|until| Instant::now() < until)
    }

    /// How long until [`Self::renew`] is due again.
    pub(super) fn interval(&self) -> Duration {
        self.term / 4
    }

    /// Looks at the Lease, and renews or takes it where that is right.
    ///
    /// # Errors
    /// Why the API server gave no usable answer.
    pub(super) async fn renew(&mut self, clock: &mut Clock) -> Result<(), String> {
        let asked = Instant::now();
        let one = format!("{}/{}", self.path, self.name);
        let (status, read) = self.send(clock, Method::GET, &one, None).await?;
        let read = match status {
            200 => Some(serde_json::from_slice::<Object>(&read).map_err(|error| error.to_string())?),
            404 => None,
            _ => return Err(refusal(status, &read)),
        };
        if !self.may_take(read.as_ref(), asked) {
            self.leads_until = None;
            return Ok(());
        }
        let (method, path) = match read {
            Some(_) => (Method::PUT, one),
            None => (Method::POST, self.path.clone()),
        };
        let object = self.object(read, &self.identity, Timestamp::now());
        let (status, answer) = self.send(clock, method, &path, Some(&object)).await?;
        match status {
            200 | 201 => self.leads_until = asked.checked_add(self.term),
            // Somebody was faster.
            409 => self.leads_until = None,
            _ => return Err(refusal(status, &answer)),
        }
        Ok(())
    }

    /// Lets it go, so that the next one need not wait.
    pub(super) async fn release(&mut self, clock: &mut Clock) -> Result<(), String> {
        if !self.leads() {
            return Ok(());
        }
        self.leads_until = None;
        let one = format!("{}/{}", self.path, self.name);
        let (status, read) = self.send(clock, Method::GET, &one, None).await?;
        let Ok(read) = serde_json::from_slice::<Object>(&read) else { return Err(refusal(status, &read)) };
        if holder(&read) == self.identity {
            let object = self.object(Some(read), "", Timestamp::now());
            self.send(clock, Method::PUT, &one, Some(&object)).await?;
        }
        Ok(())
    }

    fn may_take(&mut self, read: Option<&Object>, at: Instant) -> bool {
        let Some(read) = read else { return true };
        let holder = holder(read);
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        let renewed = read.spec.as_ref().and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0);
        match &self.seen {
            Some((known, sign, since)) if known == holder && *sign == renewed => {
                at.saturating_duration_since(*since) >= term(read).unwrap_or(self.term)
            }
            _ => {
                self.seen = Some((holder.to_owned(), renewed, at));
                false
            }
        }
    }

    fn object(&self, read: Option<Object>, holder_now: &str, now: Timestamp) -> Object {
        let mut object = read.unwrap_or_else(|| Object {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            ..Object::default()
        });
        let is_new = holder(&object) != holder_now;
        let spec = object.spec.get_or_insert_with(LeaseSpec::default);
        if is_new {
            spec.acquire_time = Some(MicroTime(now));
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
        }
        spec.holder_identity = Some(holder_now.to_owned());
        spec.lease_duration_seconds = i32::try_from(self.term.as_secs()).ok();
        spec.renew_time = Some(MicroTime(now));
        object
    }

    async fn send(
        &self,
        clock: &mut Clock,
        method: Method,
        path: &str,
        object: Option<&Object>,
    ) -> Result<(u16, Vec<u8>), String> {
        let body = object.map(serde_json::to_vec).transpose().map_err(|error| error.to_string())?;
        let request =
            Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
        let request =
            request.body(Body::from(body.unwrap_or_default())).map_err(|error| error.to_string())?;
        let exchange = async {
            let asked = Instant::now();
            let response = self.client.send(request).await.map_err(|error| error.to_string())?;
            if let Some(date) =
                response.headers().get(header::DATE).and_then(|date| date.to_str().ok()).and_then(date)
            {
                clock.hear(date, asked, Instant::now());
            }
            let status = response.status().as_u16();
            let body = response.into_body().collect_bytes().await.map_err(|error| error.to_string())?;
            Ok((status, body.to_vec()))
        };
        match tokio::time::timeout(self.term / 2, exchange).await {
            Ok(exchanged) => exchanged,
            Err(_) => Err("no answer in time".to_owned()),
        }
    }
}

fn holder(lease: &Object) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

fn term(lease: &Object) -> Option<Duration> {
    let seconds = lease.spec.as_ref()?.lease_duration_seconds?;
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

fn date(text: &str) -> Option<SystemTime> {
    let parsed = DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(SystemTime::from(parsed))
}

fn refusal(status: u16, body: &[u8]) -> String {
    let said: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let said = said.as_ref().and_then(|said| said.get("message")?.as_str()).unwrap_or("no reason given");
    format!("status {status}: {said}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_date_of_an_answer() {
        let expected = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(expected));
        assert_eq!(date("yesterday"), None);
    }
}
