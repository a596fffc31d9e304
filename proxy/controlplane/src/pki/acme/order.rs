//! One order: from an account to a certificate (RFC 8555, 7.4).

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use instant_acme::{
    Account, AuthorizationStatus, ChallengeHandle, ChallengeType, Error, ExternalAccountKey,
    Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use policy::Secret;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::challenge::Presented;
use super::dns::{self, Verb};
use super::http::Messenger;
use super::{AcmePlan, Answer};
use crate::pki::{PkiError, x509};

/// Why there is no certificate.
#[derive(Debug)]
pub(super) enum Failure {
    /// The authority looked and did not find what it wanted, or does not want to. Asking again soon
    /// changes nothing, and authorities count failures.
    Refused(String),
    /// Something on the way failed.
    Failed(String),
}

impl Failure {
    pub(super) fn text(&self) -> &str {
        match self {
            Failure::Refused(text) | Failure::Failed(text) => text,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::Api(problem) => {
                let kind = problem.r#type.as_deref().unwrap_or_default();
                let is_passing = PASSING.iter().any(|passing| kind.ends_with(passing));
                match is_passing || problem.status.is_some_and(|status| status >= 500) {
                    true => Failure::Failed(problem.to_string()),
                    false => Failure::Refused(problem.to_string()),
                }
            }
            error => Failure::Failed(error.to_string()),
        }
    }
}

impl From<PkiError> for Failure {
    fn from(error: PkiError) -> Failure {
        Failure::Failed(error.to_string())
    }
}

/// Kinds of problems (RFC 8555, 6.7) that say nothing against the order.
const PASSING: [&str; 2] = [":badNonce", ":serverInternal"];

/// The account with the plan's authority: the one that is kept, or a new one.
pub(super) async fn account(plan: &AcmePlan) -> Result<Account, Failure> {
    let messenger = || {
        let messenger = Messenger::new(plan.tls.clone(), plan.dns.clone());
        Account::builder_with_http(Box::new(messenger))
    };
    if let Some(kept) = plan.store.account(&plan.directory)? {
        return Ok(messenger().from_credentials(kept).await?);
    }
    let contact: Vec<&str> = plan.contact.iter().map(String::as_str).collect();
    let new = NewAccount {
        contact: &contact,
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let external = match &plan.external_account {
        None => None,
        Some((id, key)) => Some(external_account(id, key)?),
    };
    let (account, credentials) = messenger()
        .create(&new, plan.directory.clone(), external.as_ref())
        .await?;
    plan.store.save_account(&plan.directory, &credentials)?;
    tracing::info!(
        directory = plan.directory,
        account = account.id(),
        "an ACME account was made"
    );
    Ok(account)
}

/// As authorities give the key: base64url, with or without padding.
fn external_account(id: &str, key: &Secret) -> Result<ExternalAccountKey, Failure> {
    let key = key.unlock(|key| {
        let key = key.trim_ascii();
        let decoded = URL_SAFE_NO_PAD
            .decode(key)
            .or_else(|_| URL_SAFE.decode(key));
        decoded.map(Zeroizing::new)
    });
    let key = key.map_err(|_| {
        Failure::Failed("the key of the external account is not base64url".to_owned())
    })?;
    Ok(ExternalAccountKey::new(id.to_owned(), &key))
}

/// Obtains a certificate for `host`: key, certificate and chain as PEM, looked at.
pub(super) async fn obtain(
    account: &Account,
    plan: &AcmePlan,
    host: &str,
) -> Result<Zeroizing<String>, Failure> {
    let identifiers = [Identifier::Dns(host.to_owned())];
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
    let mut answered = Answered::default();
    let ready = validate(&mut order, plan, &mut answered).await;
    answered.withdraw(plan).await;
    ready?;

    let key = KeyPair::generate().map_err(PkiError::crypto("generate a key"))?;
    let mut params = CertificateParams::new(vec![host.to_owned()])
        .map_err(PkiError::crypto("write the name"))?;
    params.distinguished_name = DistinguishedName::new();
    let request = params
        .serialize_request(&key)
        .map_err(PkiError::crypto("sign the request"))?;
    order.finalize_csr(request.der()).await?;
    let chain = order.poll_certificate(&PATIENCE).await?;
    look_at(&chain, host, &key)?;
    let mut pem = x509::key_to_pem(key.serialized_der());
    pem.push_str(&chain);
    Ok(pem)
}

/// Answers every challenge of the order, and waits for what the authority says.
async fn validate(
    order: &mut Order,
    plan: &AcmePlan,
    answered: &mut Answered,
) -> Result<(), Failure> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        match authorization.status {
            // Of an earlier order.
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            status => {
                return Err(Failure::Refused(format!("the authorization is {status:?}")));
            }
        }
        let kind = match plan.answer {
            Answer::Dns { .. } => ChallengeType::Dns01,
            Answer::Http(_) => ChallengeType::Http01,
            Answer::TlsAlpn => ChallengeType::TlsAlpn01,
        };
        let offered: BTreeSet<String> = authorization
            .challenges
            .iter()
            .map(|challenge| format!("{:?}", challenge.r#type))
            .collect();
        let Some(mut challenge) = authorization.challenge(kind) else {
            let offered: Vec<_> = offered.into_iter().collect();
            return Err(Failure::Refused(format!(
                "the authority does not offer this kind of challenge, but {}; change `challenge` in [acme]",
                offered.join(", ")
            )));
        };
        answered.answer(&challenge, plan).await?;
        challenge.set_ready().await?;
    }
    match order.poll_ready(&PATIENCE).await {
        Ok(OrderStatus::Ready | OrderStatus::Valid) => Ok(()),
        Ok(_) => Err(Failure::Refused(reason(order).await)),
        Err(error) => {
            let failure = Failure::from(error);
            match failure {
                // It says which challenge, and no more.
                Failure::Refused(text) => {
                    Err(Failure::Refused(format!("{text}: {}", reason(order).await)))
                }
                failure => Err(failure),
            }
        }
    }
}

/// What the authority has against the challenges.
async fn reason(order: &mut Order) -> String {
    let mut reasons = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else {
            continue;
        };
        let problems = state.challenges.iter().filter_map(|it| it.error.as_ref());
        reasons.extend(problems.map(ToString::to_string));
    }
    match reasons.is_empty() {
        true => "the authority gave no reason".to_owned(),
        false => reasons.join("; "),
    }
}

/// What has been put in place for the authority.
#[derive(Default)]
struct Answered {
    /// Taken away when dropped.
    presented: Vec<Presented>,
    records: Vec<(String, String)>,
}

impl Answered {
    async fn answer(
        &mut self,
        challenge: &ChallengeHandle<'_>,
        plan: &AcmePlan,
    ) -> Result<(), Failure> {
        let authorization = challenge.key_authorization();
        match &plan.answer {
            Answer::Http(_) => self.presented.push(
                plan.challenges
                    .present_http(&challenge.token, authorization.as_str()),
            ),
            Answer::TlsAlpn => {
                let host = challenge.identifier().to_string();
                let digest = authorization.digest();
                let presented = plan.challenges.present_tls(&host, digest.as_ref())?;
                self.presented.push(presented);
            }
            Answer::Dns {
                hook,
                resolvers,
                propagation,
            } => {
                let host = challenge.identifier().to_string();
                // RFC 8555, 7.1.3: a wildcard is validated at the name below it.
                let name = format!("_acme-challenge.{}", host.trim_start_matches("*."));
                let value = authorization.dns_value();
                // Remembered first: what a hook has begun is cleaned up, however it ended.
                self.records.push((name.clone(), value.clone()));
                hook.call(Verb::Present, &name, &value)
                    .await
                    .map_err(Failure::Failed)?;
                dns::wait_for_record(resolvers, &plan.dns, &name, &value, *propagation)
                    .await
                    .map_err(Failure::Failed)?;
            }
        }
        Ok(())
    }

    async fn withdraw(self, plan: &AcmePlan) {
        let Answer::Dns { hook, .. } = &plan.answer else {
            return;
        };
        for (name, value) in self.records {
            if let Err(error) = hook.call(Verb::Cleanup, &name, &value).await {
                tracing::warn!("a record for ACME stays behind: {error}");
            }
        }
    }
}

/// Whether what the authority sent is what was asked for. Nothing else takes the place of a
/// certificate that serves.
fn look_at(chain: &str, host: &str, key: &KeyPair) -> Result<(), Failure> {
    let refused = |problem: &str| Failure::Failed(format!("the authority's certificate {problem}"));
    let first =
        CertificateDer::from_pem_slice(chain.as_bytes()).map_err(|_| refused("is not in PEM"))?;
    let facts = x509::facts(&first).map_err(refused)?;
    if facts.key != x509::key_hash(&rcgen::PublicKeyData::subject_public_key_info(key)) {
        return Err(refused("is for another key"));
    }
    if !facts.dns_names.iter().any(|name| name == host) {
        return Err(refused("is for another name"));
    }
    if facts.not_after <= SystemTime::now() {
        return Err(refused("has expired; is the clock right?"));
    }
    Ok(())
}

/// How long an authority may take to validate, or to sign.
const PATIENCE: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(500))
    .backoff(1.5)
    .timeout(Duration::from_secs(120));
