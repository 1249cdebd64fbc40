//! Mutual TLS between instances. Both sides show a certificate that an authority on the trust list issued for what they do (server
//! or client), or one that is on the list itself: all instances may share one, however it was made. Instances are dialled where
//! their records in the store say, mostly by addresses nobody issues certificates for, so a certificate is held to the address
//! only if it names any of that kind (docs/mesh.md).

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    ServerConfig, SignatureScheme,
};
use tokio_rustls::TlsConnector;

use crate::socket::Socket;
use crate::stream::Stream;
use crate::tls::{certificates, key, mismatch, unusable};

/// What the configurations are made of.
pub struct PeerMaterial<'a> {
    /// The certificate, then its issuers.
    pub certificate_pem: &'a [u8],
    /// PKCS#8, PKCS#1 or SEC1; or encrypted PKCS#8.
    pub key_pem: &'a [u8],
    /// The authorities of the others, and certificates that are trusted themselves.
    pub trusted_pem: &'a [u8],
    /// Of an encrypted key, else empty.
    pub passphrase: &'a str,
}

/// For both ends.
#[derive(Clone)]
pub struct PeerConfigs {
    /// Of the peer port.
    pub accept: Arc<ServerConfig>,
    /// Towards others.
    pub dial: Arc<ClientConfig>,
}

impl PeerConfigs {
    /// From PEM texts.
    ///
    /// # Errors
    /// A sentence saying what cannot be used.
    pub fn new(material: &PeerMaterial<'_>) -> Result<PeerConfigs, String> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates(material.certificate_pem, "The certificate file for peers")?;
        let key = key(material.key_pem, material.passphrase)?;
        let trusted = certificates(material.trusted_pem, "The trust list for peers")?;
        let mut roots = RootCertStore::empty();
        for root in &trusted {
            roots.add(root.clone()).map_err(|error| {
                format!("A certificate of the trust list for peers cannot be used: {error}.")
            })?;
        }
        let (roots, trusted) = (Arc::new(roots), Arc::<[_]>::from(trusted));
        let issued =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        let issued =
            issued.map_err(|error| format!("The trust list for peers cannot be used: {error}."))?;
        let clients = Arc::new(Clients {
            issued,
            trusted: trusted.clone(),
        });
        let servers = Servers {
            roots,
            trusted,
            provider,
        };
        acceptable(&chain, &*clients, &servers)?;
        let provider = servers.provider.clone();
        let mut accept = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(mismatch)?;
        let mut dial = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(servers))
            .with_client_auth_cert(chain, key)
            .map_err(mismatch)?;
        accept.alpn_protocols = vec![b"h2".to_vec()];
        dial.alpn_protocols = vec![b"h2".to_vec()];
        Ok(PeerConfigs {
            accept: Arc::new(accept),
            dial: Arc::new(dial),
        })
    }
}

/// Whether others with the same trust list take this certificate, as that of a server and of a client.
fn acceptable(
    chain: &[CertificateDer<'_>],
    clients: &dyn ClientCertVerifier,
    servers: &Servers,
) -> Result<(), String> {
    let Some((own, issuers)) = chain.split_first() else {
        return Ok(());
    };
    let refused = |what: &str, error: Error| {
        format!(
            "Other instances would refuse the certificate for peers as that of a {what}: {error}; it has to be on the trust list, or issued by an authority of it for servers and for clients."
        )
    };
    let now = UnixTime::now();
    servers
        .verify_issuer(own, issuers, now)
        .map_err(|error| refused("server", error))?;
    clients
        .verify_client_cert(own, issuers, now)
        .map_err(|error| refused("client", error))?;
    Ok(())
}

/// Shakes hands with another instance, as its client.
///
/// # Errors
/// When the other is not one, or does not take this one for one.
pub async fn dial(
    config: Arc<ClientConfig>,
    address: &str,
    socket: Socket,
) -> std::io::Result<Stream> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = match host.parse::<IpAddr>() {
        Ok(address) => ServerName::IpAddress(address.into()),
        Err(_) => ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?,
    };
    let shaken = TlsConnector::from(config).connect(name, socket).await?;
    Ok(Stream::Tls(Box::new(shaken.into())))
}

/// Verifies other instances as servers.
#[derive(Debug)]
struct Servers {
    roots: Arc<RootCertStore>,
    trusted: Arc<[CertificateDer<'static>]>,
    provider: Arc<CryptoProvider>,
}

impl Servers {
    fn verify_issuer(
        &self,
        own: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        if self.trusted.contains(own) {
            return Ok(());
        }
        let algorithms = self.provider.signature_verification_algorithms.all;
        let own = ParsedCertificate::try_from(own)?;
        verify_server_cert_signed_by_trust_anchor(&own, &self.roots, issuers, now, algorithms)
    }
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify_issuer(own, issuers, now)?;
        match verify_server_name(&ParsedCertificate::try_from(own)?, name) {
            Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext {
                presented,
                ..
            })) if !presented.iter().any(|other| is_alike(name, other)) => {}
            verified => verified?,
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, own, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, own, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Verifies other instances as clients.
#[derive(Debug)]
struct Clients {
    issued: Arc<dyn ClientCertVerifier>,
    trusted: Arc<[CertificateDer<'static>]>,
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.issued.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if self.trusted.contains(own) {
            return Ok(ClientCertVerified::assertion());
        }
        self.issued.verify_client_cert(own, issuers, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.issued.verify_tls12_signature(message, own, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.issued.verify_tls13_signature(message, own, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.issued.supported_verify_schemes()
    }
}

/// Whether a name in a certificate, as webpki writes it, is of the kind of the one that was dialled.
fn is_alike(dialled: &ServerName<'_>, presented: &str) -> bool {
    let kind = match dialled {
        ServerName::IpAddress(_) => "IpAddress(",
        _ => "DnsName(",
    };
    presented.starts_with(kind)
}
