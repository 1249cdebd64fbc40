//! TLS of the ports (that of the peer port: `peer_tls`): from PEM texts to configurations that are swapped whole, and the handshake of one
//! connection. Who is in a handshake costs the others nothing but its share of the loop.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use pkcs8::{EncryptedPrivateKeyInfo, SecretDocument};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::metrics::Counters;
use crate::peer_tls::{PeerConfigs, PeerMaterial};
use crate::socket::Socket;
use crate::stream::Stream;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Handshakes one loop has under way at once; whoever comes beyond is turned away.
const HANDSHAKES_MAX: usize = 256;

const ENCRYPTED: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";

/// A listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// HTTP/2.
    Grpc,
    /// HTTP/1.1.
    Rest,
    /// HTTP/2, for other instances.
    Peer,
}

/// Whether clients have to show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ClientAuth {
    None,
    Optional,
    Require,
}

/// What a configuration is made of, as read from files.
pub struct Material<'a> {
    /// The certificate, then its issuers.
    pub certificate_pem: &'a [u8],
    /// PKCS#8, PKCS#1 or SEC1; or encrypted PKCS#8.
    pub key_pem: &'a [u8],
    /// Of an encrypted key; may be empty.
    pub passphrase: &'a str,
    /// What clients have to show.
    pub client_auth: ClientAuth,
    /// Who may have issued it; `None`: whom the system trusts.
    pub trust_pem: Option<&'a [Vec<u8>]>,
}

/// What is in force; nothing: plain text.
#[derive(Default)]
pub struct Tls {
    configs: RwLock<Option<Configs>>,
    peers: RwLock<Option<PeerConfigs>>,
}

#[derive(Clone)]
struct Configs {
    grpc: Arc<ServerConfig>,
    rest: Arc<ServerConfig>,
}

impl Tls {
    /// Puts a configuration in force for connections that come from now on.
    ///
    /// # Errors
    /// A sentence saying what cannot be used; then nothing changes.
    pub fn set(&self, material: &Material<'_>) -> Result<(), String> {
        let base = server_config(material)?;
        let speaking = |protocol: &str| {
            let mut config = base.clone();
            config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
            Arc::new(config)
        };
        *self.configs.write() = Some(Configs {
            grpc: speaking("h2"),
            rest: speaking("http/1.1"),
        });
        Ok(())
    }

    /// The same for connections from and to other instances.
    ///
    /// # Errors
    /// A sentence saying what cannot be used; then nothing changes.
    pub fn set_for_peers(&self, material: &PeerMaterial<'_>) -> Result<(), String> {
        *self.peers.write() = Some(PeerConfigs::new(material)?);
        Ok(())
    }

    /// The configuration of a port; `None`: plain text.
    pub fn of(&self, port: Port) -> Option<Arc<ServerConfig>> {
        let configs = self.configs.read();
        match port {
            Port::Grpc => configs.as_ref().map(|configs| configs.grpc.clone()),
            Port::Rest => configs.as_ref().map(|configs| configs.rest.clone()),
            Port::Peer => self.peers.read().as_ref().map(|peers| peers.accept.clone()),
        }
    }

    /// Towards other instances; `None`: plain text.
    pub fn to_peers(&self) -> Option<Arc<ClientConfig>> {
        self.peers.read().as_ref().map(|peers| peers.dial.clone())
    }
}

/// The handshakes one loop has under way.
#[derive(Default)]
pub struct Handshakes {
    under_way: Cell<usize>,
}

impl Handshakes {
    /// The connection after its handshake; `None` when there was none.
    pub async fn shake(
        &self,
        socket: Socket,
        config: Arc<ServerConfig>,
        counters: &Counters,
    ) -> Option<Stream> {
        if self.under_way.get() >= HANDSHAKES_MAX {
            counters.tls_turned_away.add(1);
            return None;
        }
        let _one = UnderWay::one(&self.under_way);
        let accepting = TlsAcceptor::from(config).accept(socket);
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, accepting).await {
            Ok(Ok(stream)) => Some(Stream::Tls(Box::new(stream.into()))),
            Ok(Err(_)) | Err(_) => {
                counters.tls_failed.add(1);
                None
            }
        }
    }
}

struct UnderWay<'a>(&'a Cell<usize>);

impl UnderWay<'_> {
    fn one(count: &Cell<usize>) -> UnderWay<'_> {
        count.set(count.get() + 1);
        UnderWay(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

fn server_config(material: &Material<'_>) -> Result<ServerConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let chain = certificates(material.certificate_pem, "The certificate file")?;
    let key = key(material.key_pem, material.passphrase)?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = match verifier(material, provider)? {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    builder.with_single_cert(chain, key).map_err(mismatch)
}

/// When the versions and ciphers are not there.
pub fn unusable(error: rustls::Error) -> String {
    format!("TLS cannot be set up: {error}.")
}

/// When a key is not that of the certificate.
pub fn mismatch(error: rustls::Error) -> String {
    format!(
        "The certificate and the key cannot be used together: {error}; give the key of this certificate."
    )
}

fn verifier(
    material: &Material<'_>,
    provider: Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, String> {
    if material.client_auth == ClientAuth::None {
        return Ok(None);
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(material)?), provider);
    let builder = match material.client_auth {
        ClientAuth::Optional => builder.allow_unauthenticated(),
        ClientAuth::None | ClientAuth::Require => builder,
    };
    let verifier = builder
        .build()
        .map_err(|error| format!("The trust list cannot be used: {error}."))?;
    Ok(Some(verifier))
}

fn roots(material: &Material<'_>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match material.trust_pem {
        Some(files) => {
            for pem in files {
                for root in certificates(pem, "A file of the trust list")? {
                    roots.add(root).map_err(|error| {
                        format!("A certificate of the trust list cannot be used: {error}.")
                    })?;
                }
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(
                    "The system trusts no certificate authority; give a trust list.".to_owned(),
                );
            }
        }
    }
    Ok(roots)
}

/// All certificates of a text.
pub fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(format!(
            "{what} holds no certificate; it has to be PEM, with a section CERTIFICATE."
        )),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("{what} is not PEM: {error}.")),
    }
}

/// The private key in a text.
pub fn key(pem: &[u8], passphrase: &str) -> Result<PrivateKeyDer<'static>, String> {
    let text = String::from_utf8_lossy(pem);
    if let Some(at) = text.find(ENCRYPTED) {
        return decrypted(&text[at..], passphrase);
    }
    if text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err("The key is encrypted in the old form of OpenSSL; convert it to PKCS#8: openssl pkcs8 -topk8 -in old.key -out new.key.".to_owned());
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| {
        "The key file holds no private key; it has to be PEM, with a section PRIVATE KEY, RSA PRIVATE KEY, EC PRIVATE KEY or ENCRYPTED PRIVATE KEY.".to_owned()
    })
}

fn decrypted(pem: &str, passphrase: &str) -> Result<PrivateKeyDer<'static>, String> {
    if passphrase.is_empty() {
        return Err("The key is encrypted; give its passphrase.".to_owned());
    }
    let unreadable = |error: &dyn std::fmt::Display| {
        format!(
            "The encrypted key cannot be read: {error}; it has to be PKCS#8 with PBES2 and AES."
        )
    };
    let end = pem
        .find("-----END ENCRYPTED PRIVATE KEY-----")
        .map_or(pem.len(), |at| {
            at + "-----END ENCRYPTED PRIVATE KEY-----".len()
        });
    let (_, sealed) = SecretDocument::from_pem(&pem[..end]).map_err(|error| unreadable(&error))?;
    let sealed =
        EncryptedPrivateKeyInfo::try_from(sealed.as_bytes()).map_err(|error| unreadable(&error))?;
    let open = sealed.decrypt(passphrase).map_err(|_| {
        "The key cannot be decrypted; the passphrase is wrong, or it is not encrypted with PBES2 and AES.".to_owned()
    })?;
    Ok(PrivatePkcs8KeyDer::from(open.as_bytes().to_vec()).into())
}
