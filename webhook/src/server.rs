//! HTTP: which path does what, and what happens to requests that are not reviews.
//!
//! Two routers for two ports: [`admission`] (`POST /mutate`, behind TLS) and [`admin`] (`/healthz`, `/readyz`,
//! `/metrics`, plain). They are apart so that whoever may scrape metrics need not reach admission.
//!
//! Memory is bounded in bytes: a request takes its length out of [`MAX_BYTES_IN_FLIGHT`] before its body is read,
//! and waits shortly when there is nothing left.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use futures_util::StreamExt as _;
use nodestub_certs::Resolver;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::admission::{Answer, NotAReview, answer};
use crate::admit::{Facts, Policy, Reason};
use crate::facts::SharedFacts;
use crate::metrics::{Metrics, Refusal};

/// The largest body, in bytes. The API server takes objects of up to 3 MiB (`MaxRequestBodyBytes` in
/// `k8s.io/apiserver/pkg/server/config.go`); a review may carry two, and a little more.
pub const MAX_BODY_BYTES: usize = 7 * 1024 * 1024;
/// Bytes of bodies that are being read or judged at the same time.
pub const MAX_BYTES_IN_FLIGHT: usize = 64 * 1024 * 1024;
/// What a request counts at least, in bytes: bounds their number to 8192.
const MIN_COUNTED_BYTES: usize = 8 * 1024;
/// The unit that bytes in flight are counted in: semaphores count to 2^32 at once.
const COUNTED_UNIT_BYTES: usize = 1024;
/// How long a request waits for others to finish. The API server itself waits a few seconds in all.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of a refused body that are read and thrown away, so that its sender sees the answer: HTTP/2 clients take
/// a stream that ends before their body for an error. Past this the stream is simply ended.
const MAX_DISCARDED_BYTES: usize = 64 * 1024 * 1024;
/// How long a body may take. The API server sends it at once.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// What the handlers share.
#[derive(Debug)]
pub struct Shared {
    policy: Policy,
    facts: Arc<SharedFacts>,
    metrics: Arc<Metrics>,
    certificates: Arc<Resolver>,
    stopping: AtomicBool,
    in_flight: Semaphore,
}

impl Shared {
    /// Nothing is in flight yet.
    #[must_use]
    pub fn new(
        policy: Policy,
        facts: Arc<SharedFacts>,
        metrics: Arc<Metrics>,
        certificates: Arc<Resolver>,
    ) -> Arc<Self> {
        let in_flight = Semaphore::new(MAX_BYTES_IN_FLIGHT / COUNTED_UNIT_BYTES);
        Arc::new(Self { policy, facts, metrics, certificates, stopping: AtomicBool::new(false), in_flight })
    }

    /// From now on `/readyz` says no.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

/// The routes of the admission port.
pub fn admission(shared: Arc<Shared>) -> Router {
    let only_post = || async { line(StatusCode::METHOD_NOT_ALLOWED, "send the AdmissionReview with POST") };
    Router::new()
        .route("/mutate", post(mutate).fallback(only_post))
        .fallback(|| async { line(StatusCode::NOT_FOUND, "there is only POST /mutate here") })
        .with_state(shared)
}

/// The routes of the admin port.
pub fn admin(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { line(StatusCode::OK, "ok") }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(|| async { line(StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics here") })
        .with_state(shared)
}

async fn mutate(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    match review(&shared, request).await {
        Ok(answer) => ([(header::CONTENT_TYPE, "application/json")], answer.body).into_response(),
        Err((cause, status, text)) => {
            shared.metrics.refused(cause);
            tracing::warn!(status = status.as_u16(), text, "refused a request");
            line(status, &text)
        }
    }
}

type Refused = (Refusal, StatusCode, String);

async fn review(shared: &Shared, request: Request) -> Result<Answer, Refused> {
    let length = content_length(&request);
    if !is_json(&request) {
        discard(request.into_body()).await;
        let text = "the content type must be application/json".to_owned();
        return Err((Refusal::ContentType, StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
    }
    let length = length.unwrap_or(MAX_BODY_BYTES);
    if length > MAX_BODY_BYTES {
        discard(request.into_body()).await;
        return Err(too_large());
    }
    // Held until the answer is made, so that what is read is counted until it is gone.
    let units = u32::try_from(length.max(MIN_COUNTED_BYTES).div_ceil(COUNTED_UNIT_BYTES)).unwrap_or(u32::MAX);
    let Ok(Ok(_counted)) = timeout(BUSY_TIMEOUT, shared.in_flight.acquire_many(units)).await else {
        discard(request.into_body()).await;
        let text = "too many requests at once; try again".to_owned();
        return Err((Refusal::Busy, StatusCode::SERVICE_UNAVAILABLE, text));
    };
    let text = body(request.into_body()).await?;
    let began = Instant::now();
    let snapshot = shared.facts.load();
    let mut answered = decide(&shared.policy, &snapshot.facts, &text);
    if let Ok(Ok(answer)) = &answered
        && matches!(answer.decision.reason, Reason::NamespaceUnknown | Reason::NamespaceNotEnabled)
        && let Some(newer) = shared.facts.newer(&snapshot, &answer.namespace).await
    {
        answered = decide(&shared.policy, &newer.facts, &text);
    }
    match answered {
        Ok(Ok(answer)) => {
            let took = began.elapsed();
            shared.metrics.decided(&answer.decision, took);
            log(&answer, took);
            Ok(answer)
        }
        Ok(Err(error @ NotAReview::Response(_))) => Err(fault(&error.to_string())),
        Ok(Err(error)) => Err((Refusal::NotAReview, StatusCode::BAD_REQUEST, error.to_string())),
        Err(_) => Err(fault("the review could not be read")),
    }
}

fn decide(policy: &Policy, facts: &Facts, text: &[u8]) -> std::thread::Result<Result<Answer, NotAReview>> {
    catch_unwind(AssertUnwindSafe(|| answer(policy, facts, text)))
}

fn is_json(request: &Request) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    kind.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case("application/json")
}

fn content_length(request: &Request) -> Option<usize> {
    // A number that does not fit is larger than any limit.
    let length = request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?;
    Some(length.parse().unwrap_or(usize::MAX))
}

async fn body(body: Body) -> Result<Vec<u8>, Refused> {
    match timeout(BODY_TIMEOUT, read(body, MAX_BODY_BYTES)).await {
        Ok(Ok(Some(text))) => Ok(text),
        Ok(Ok(None)) => Err(too_large()),
        Ok(Err(_)) => Err((Refusal::Body, StatusCode::BAD_REQUEST, "the body broke off".to_owned())),
        Err(_) => {
            Err((Refusal::Body, StatusCode::REQUEST_TIMEOUT, "the body did not come in time".to_owned()))
        }
    }
}

/// Reads a body that is refused, without keeping it. How it ends does not matter.
async fn discard(body: Body) {
    drop(timeout(BODY_TIMEOUT, read(body, 0)).await);
}

/// Reads a body to its end; none when it is larger than what may be kept.
async fn read(body: Body, keep_bytes: usize) -> Result<Option<Vec<u8>>, axum::Error> {
    let mut chunks = body.into_data_stream();
    let (mut text, mut seen) = (Vec::new(), 0_usize);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        seen = seen.saturating_add(chunk.len());
        if seen <= keep_bytes {
            text.extend_from_slice(&chunk);
        } else if seen > MAX_DISCARDED_BYTES {
            break;
        }
    }
    Ok((seen <= keep_bytes).then_some(text))
}

fn too_large() -> Refused {
    let text = format!("the body is larger than {MAX_BODY_BYTES} bytes");
    (Refusal::TooLarge, StatusCode::PAYLOAD_TOO_LARGE, text)
}

fn fault(what: &str) -> Refused {
    let text = format!("a fault of the webhook: {what}; the pod is left as it is");
    (Refusal::Fault, StatusCode::INTERNAL_SERVER_ERROR, text)
}

/// One line for each decision.
fn log(answer: &Answer, took: Duration) {
    let Answer { decision, uid, namespace, name, dry_run, .. } = answer;
    let revision = decision.injection.as_ref().map(crate::admit::Injection::revision).unwrap_or_default();
    let warnings = decision.warnings.iter().map(crate::admit::Warning::text).collect::<Vec<_>>().join("; ");
    tracing::info!(
        reason = decision.reason.label(),
        namespace,
        name,
        rule = decision.rule,
        revision,
        warnings,
        dry_run,
        uid,
        microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        "decided"
    );
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    if shared.stopping.load(Ordering::Relaxed) {
        return line(StatusCode::SERVICE_UNAVAILABLE, "stopping");
    }
    let awaited = &shared.facts.load().awaited;
    if !awaited.is_empty() {
        let text = format!("not known yet: {}", awaited.join(", "));
        return line(StatusCode::SERVICE_UNAVAILABLE, &text);
    }
    let certificates = &shared.certificates;
    match certificates.current() {
        None => return line(StatusCode::SERVICE_UNAVAILABLE, "no certificate yet"),
        Some(pair) if !pair.leaf().contains(certificates.now()) => {
            return line(StatusCode::SERVICE_UNAVAILABLE, "the certificate is out of its time");
        }
        Some(_) => {}
    }
    match &certificates.outlook().verdict {
        Some(Err(why)) => line(StatusCode::SERVICE_UNAVAILABLE, why),
        Some(Ok(())) | None => line(StatusCode::OK, "ready"),
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match shared.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => line(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written"),
    }
}

fn line(status: StatusCode, text: &str) -> Response {
    (status, format!("{text}\n")).into_response()
}
