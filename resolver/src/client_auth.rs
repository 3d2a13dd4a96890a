//! What is wanted of clients in a handshake: the five kinds of Go's `crypto/tls`, which CoreDNS's `tls` and Prometheus'
//! exporter-toolkit both take over.

use std::sync::Arc;

use nodestub_corefile::config::tls::ClientAuth;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoClientAuth, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};

/// For the kinds that verify nothing; `None`: this one does.
pub fn of_anybody(kind: ClientAuth, provider: &Arc<CryptoProvider>) -> Option<Arc<dyn ClientCertVerifier>> {
    let anybody = |mandatory| Arc::new(AnyClient { provider: Arc::clone(provider), mandatory });
    match kind {
        ClientAuth::No => Some(Arc::new(NoClientAuth)),
        ClientAuth::Request => Some(anybody(false)),
        ClientAuth::RequireAny => Some(anybody(true)),
        ClientAuth::VerifyIfGiven | ClientAuth::RequireAndVerify => None,
    }
}

/// Certificates are of one of `roots`; without `mandatory` none need come. With `named`, clients are told whom we
/// believe, to choose a certificate by.
///
/// # Errors
/// There are no roots.
pub fn of_authorities(
    roots: RootCertStore,
    mandatory: bool,
    named: bool,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, VerifierBuilderError> {
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    if !mandatory {
        builder = builder.allow_unauthenticated();
    }
    if !named {
        builder = builder.clear_root_hint_subjects();
    }
    builder.build()
}

/// Lets in whoever has the key of the certificate that he shows, whosoever's it is.
#[derive(Debug)]
struct AnyClient {
    provider: Arc<CryptoProvider>,
    mandatory: bool,
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
