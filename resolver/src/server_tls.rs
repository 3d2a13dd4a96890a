//! TLS towards clients: the files of `tls`, to what handshakes at the `tls://` ports are done with.
//!
//! ```text
//!   Corefile ─► Certificates::read: what cannot be served is refused here ─► config(), for each handshake
//!                    ▲                                                          │
//!                    └── the files are looked at every so often, for as long as a Corefile names them
//! ```
//!
//! CoreDNS reads its files when it starts and at a reload of the Corefile. Here a certificate that is renewed (a mounted
//! Secret of cert-manager, say) is served within five seconds; one that then does not read leaves the last good one in
//! place, is said once and counted. Connections go on with what they were made with.
//!
//! Who comes again takes up his session by a ticket (RFC 8446, 2.2; RFC 5077), whose keys live in this process, change
//! every six hours, and outlive a renewal. Not where clients' certificates are verified: the library takes a session up
//! without looking at them again, so that one that has ended meanwhile would still be good.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use nodestub_corefile::config::tls::{ClientAuth, ServerTls};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::server::{NoServerSessionStorage, ProducesTickets};

use crate::client_auth;
use crate::metrics::Counter;
use crate::pem::{self, TlsError};

/// Time between looks at the files.
const LOOK: Duration = Duration::from_secs(5);

/// The files of one `tls`, as they were when they could be served last.
#[derive(Debug)]
pub struct Certificates {
    files: ServerTls,
    /// `None`: sessions are not taken up.
    tickets: Option<Arc<dyn ProducesTickets>>,
    current: ArcSwap<ServerConfig>,
    seen: Mutex<Seen>,
    /// Changes that are served.
    pub renewed: Counter,
    /// Changes that cannot be served.
    pub refused: Counter,
}

#[derive(Debug)]
struct Seen {
    served: Material,
    /// Why the files as they are now are not served.
    problem: Option<String>,
}

/// What the files held.
#[derive(Debug, PartialEq, Eq)]
struct Material {
    pair: pem::Pair,
    authorities: Option<Vec<CertificateDer<'static>>>,
}

impl Certificates {
    /// Reads what `tls` names.
    ///
    /// # Errors
    /// It is not there, not in PEM, or does not belong together.
    pub fn read(files: &ServerTls) -> Result<Arc<Self>, TlsError> {
        let authorities = match (&files.authorities, files.client_auth.verifies()) {
            (None, false) => None,
            (file, _) => Some(pem::authorities(file.as_deref())?),
        };
        let served = Material { pair: pem::pair(&files.pair)?, authorities };
        let tickets = match files.client_auth.verifies() {
            true => None,
            false => Some(aws_lc_rs::Ticketer::new().map_err(TlsError::Refused)?),
        };
        let current = ArcSwap::new(configure(files, &served, tickets.as_ref())?);
        let seen = Mutex::new(Seen { served, problem: None });
        let (renewed, refused) = Default::default();
        Ok(Arc::new(Self { files: files.clone(), tickets, current, seen, renewed, refused }))
    }

    /// What the next handshake is done with.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// The directive that these are of.
    pub fn files(&self) -> &ServerTls {
        &self.files
    }

    /// The file of the certificate.
    pub fn file(&self) -> &Path {
        &self.files.pair.certificate
    }

    /// Whether what lies in the files now cannot be served.
    pub fn is_outdated(&self) -> bool {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).problem.is_some()
    }

    /// Looks at the files. The system's own authorities are read when the Corefile is, and not again.
    pub fn refresh(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let found = pem::pair(&self.files.pair).and_then(|pair| {
            let authorities = match &self.files.authorities {
                Some(file) => Some(pem::authorities(Some(file))?),
                None => seen.served.authorities.clone(),
            };
            Ok(Material { pair, authorities })
        });
        let changed = found.and_then(|found| {
            if found == seen.served {
                return Ok(None);
            }
            Ok(Some((configure(&self.files, &found, self.tickets.as_ref())?, found)))
        });
        let file = self.file().display();
        match changed {
            Ok(None) => seen.problem = None,
            Ok(Some((config, found))) => {
                self.current.store(config);
                *seen = Seen { served: found, problem: None };
                self.renewed.add(1);
                tracing::info!(%file, "tls: the certificate for clients has changed, and is served");
            }
            Err(error) => {
                let problem = error.to_string();
                if seen.problem.as_ref() != Some(&problem) {
                    self.refused.add(1);
                    tracing::error!(
                        %file, %error,
                        "tls: the changed certificate for clients cannot be served; the last good one stays"
                    );
                    seen.problem = Some(problem);
                }
            }
        }
    }

    /// Looks at the files every so often, for as long as somebody holds these.
    pub fn keep_fresh(self: &Arc<Self>) {
        let certificates = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let Some(certificates) = certificates.upgrade() else { return };
                // Reading may block; it is off the threads that answer.
                if tokio::task::spawn_blocking(move || certificates.refresh()).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// TLS 1.2 and 1.3, as CoreDNS.
fn configure(
    files: &ServerTls,
    material: &Material,
    tickets: Option<&Arc<dyn ProducesTickets>>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = match client_auth::of_anybody(files.client_auth, &provider) {
        Some(verifier) => verifier,
        None => {
            let roots = pem::roots(material.authorities.as_deref().unwrap_or_default())?;
            let mandatory = files.client_auth == ClientAuth::RequireAndVerify;
            // The system has so many that their names would fill the handshake.
            let named = files.authorities.is_some();
            let built = client_auth::of_authorities(roots, mandatory, named, &provider);
            built.map_err(|error| TlsError::NoAuthorities(error.to_string()))?
        }
    };
    let (chain, key) = &material.pair;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Refused)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(TlsError::Refused)?;
    // Who names none is served as well; who names others only means another service (RFC 7301, 3.2; RFC 7858 has it
    // registered, and leaves it to the client).
    config.alpn_protocols = vec![b"dot".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    match tickets {
        Some(tickets) => config.ticketer = Arc::clone(tickets),
        None => config.send_tls13_tickets = 0,
    }
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nodestub_corefile::config::tls::KeyPair;
    use tempfile::TempDir;

    struct Files {
        folder: TempDir,
        tls: ServerTls,
    }

    impl Files {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = |name: &str| folder.path().join(name);
            let pair = KeyPair { certificate: path("tls.crt"), key: path("tls.key") };
            let tls = ServerTls { pair, authorities: None, client_auth: ClientAuth::No };
            let files = Self { folder, tls };
            files.renew();
            files
        }

        /// Writes a new pair; returns its certificate.
        fn renew(&self) -> String {
            let pair = rcgen::generate_simple_self_signed(vec!["dns.test".to_owned()]).unwrap();
            self.write("tls.crt", &pair.cert.pem());
            self.write("tls.key", &pair.signing_key.serialize_pem());
            pair.cert.pem()
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.folder.path().join(name), text).unwrap();
        }
    }

    #[test]
    fn a_renewed_pair_is_served_and_a_broken_one_is_counted_once() {
        let files = Files::new();
        let certificates = Certificates::read(&files.tls).unwrap();
        let first = certificates.config();
        certificates.refresh();
        assert!(Arc::ptr_eq(&first, &certificates.config()));
        let second_pem = files.renew();
        certificates.refresh();
        let second = certificates.config();
        assert!(!Arc::ptr_eq(&first, &second));
        assert_eq!((certificates.renewed.get(), certificates.is_outdated()), (1, false));
        for (number, (name, text)) in
            [("tls.crt", "no certificate"), ("tls.crt", &files.renew()), ("tls.key", "no key")]
                .into_iter()
                .enumerate()
        {
            files.write(name, text);
            if number == 1 {
                // The key of another certificate.
                files.write("tls.crt", &second_pem);
            }
            for _ in 0..2 {
                certificates.refresh();
            }
            assert!(Arc::ptr_eq(&second, &certificates.config()), "{number}");
            assert_eq!((certificates.refused.get(), certificates.is_outdated()), (number as u64 + 1, true));
        }
        files.renew();
        certificates.refresh();
        assert_eq!((certificates.renewed.get(), certificates.is_outdated()), (2, false));
    }

    #[test]
    fn refuses_what_cannot_be_served_at_the_start() {
        let files = Files::new();
        let missing = ServerTls {
            authorities: Some(files.folder.path().join("none.crt")),
            client_auth: ClientAuth::RequireAndVerify,
            ..files.tls.clone()
        };
        assert!(
            matches!(Certificates::read(&missing), Err(TlsError::File(file, _)) if file.ends_with("none.crt"))
        );
        files.write("tls.key", "");
        assert!(
            matches!(Certificates::read(&files.tls), Err(TlsError::File(file, _)) if file.ends_with("tls.key"))
        );
    }

    #[test]
    fn sessions_are_taken_up_only_where_no_certificate_would_have_to_be_looked_at_again() {
        let files = Files::new();
        std::fs::copy(files.folder.path().join("tls.crt"), files.folder.path().join("ca.crt")).unwrap();
        for (client_auth, taken_up) in [
            (ClientAuth::No, true),
            (ClientAuth::Request, true),
            (ClientAuth::RequireAny, true),
            (ClientAuth::VerifyIfGiven, false),
            (ClientAuth::RequireAndVerify, false),
        ] {
            let authorities = Some(files.folder.path().join("ca.crt"));
            let tls = ServerTls { client_auth, authorities, ..files.tls.clone() };
            let config = Certificates::read(&tls).unwrap().config();
            assert_eq!((config.ticketer.enabled(), config.send_tls13_tickets > 0), (taken_up, taken_up));
            assert!(!config.session_storage.can_cache());
        }
    }
}
