//! [`explain`]: what would happen to a request, and why.
//!
//! The request is parsed, decided upon and rewritten by the same code that
//! serves it; only the key is left out. Query values are never shown: callers
//! put keys there.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use policy::{
    AddressBook, Caller, Callers, Fingerprint, Listener, NamedCaller, Require, Route, Snapshot,
    UnknownSni, Verdict,
};
use wire::framing::BodyFraming;
use wire::head::{Parse, RequestHead};
use wire::rewrite::Plan;
use wire::target::authority_host;

use super::report::{quote, without_keys};
use super::written::show_period;

/// A request that was not sent.
#[derive(Debug, Clone)]
pub struct Question {
    /// The method, in upper case.
    pub method: String,
    /// An absolute URL: `https://host/path?query`.
    pub url: String,
    /// Where it would come from.
    pub from: IpAddr,
}

/// What would happen to it.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The method.
    pub method: String,
    /// The URL without its query's values.
    pub url: String,
    /// Where it would come from.
    pub from: IpAddr,
    /// Who would accept the connection.
    pub listener: Option<Place>,
    /// The virtual host, as it is configured.
    pub host: Option<String>,
    /// The route that it would take, or that would refuse it.
    pub route: Option<RouteView>,
    /// What becomes of it.
    pub outcome: Outcome,
}

/// A listener.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Whether it speaks TLS.
    pub tls: bool,
}

/// A route, as it would treat the request.
#[derive(Debug, Clone)]
pub struct RouteView {
    /// Its name.
    pub name: String,
    /// Its path.
    pub path: String,
    /// Its methods; empty is all.
    pub methods: Vec<String>,
    /// Its rule for callers.
    pub callers: String,
    /// The headers that it removes.
    pub strip_headers: Vec<String>,
    /// The query parameters that it removes.
    pub strip_query: Vec<String>,
    /// The query parameters that it keeps although they would be removed.
    pub keep_query: Vec<String>,
    /// Whether it removes cookies.
    pub strip_cookies: bool,
    /// The headers that it removes from answers.
    pub strip_response_headers: Vec<String>,
    /// The headers in which it tells where the request came from.
    pub forwarded: Vec<String>,
    /// How it writes the key, with the value hidden.
    pub writes: Option<String>,
    /// The key.
    pub credential: Option<CredentialView>,
    /// The upstream's name in the configuration.
    pub upstream: String,
    /// The `Host` that it sends.
    pub upstream_host: String,
    /// The name in the certificate that it asks for.
    pub tls_name: String,
    /// Where it would connect to; empty while the name has not been looked up.
    pub addresses: Vec<String>,
    /// How long the upstream may think.
    pub response_head_timeout: Duration,
    /// The largest request body, if there is a limit.
    pub body_bytes_max: Option<u64>,
    /// Whether it needs a place on the audit trail.
    pub audit_required: bool,
}

/// A key, without the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialView {
    /// Its name.
    pub name: String,
    /// Which value it is, in its source's terms.
    pub version: String,
    /// Which value it is, as `hunt` calls it; none for one that is short.
    pub fingerprint: Option<Fingerprint>,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is sent on.
    Allowed {
        /// Method and path, as the upstream would see them.
        sends: String,
        /// What would be removed from this request's URL.
        stripped: Vec<String>,
    },
    /// It is answered here.
    Denied {
        /// The status; 0 where the connection ends before there is one.
        status: u16,
        /// Machine-readable.
        reason: String,
        /// A sentence.
        detail: String,
    },
}

/// Why a question cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// Not an absolute URL.
    #[error(
        "not a URL that a caller could ask for; write it whole, as in https://api.example.com/v1/things"
    )]
    Url,
    /// Not a method.
    #[error("not a method; write it in upper case, as in GET")]
    Method,
}

/// What `snapshot` would do with a request.
///
/// # Errors
/// [`QuestionError`] when it is no request.
pub fn explain(
    snapshot: &Snapshot,
    addresses: &AddressBook,
    question: &Question,
) -> Result<Explanation, QuestionError> {
    let method = &question.method;
    let is_method = method
        .bytes()
        .all(|byte| byte.is_ascii_uppercase() || byte == b'-');
    if method.is_empty() || !is_method {
        return Err(QuestionError::Method);
    }
    let url = Url::parse(&question.url).ok_or(QuestionError::Url)?;
    let from = Caller::canonical(question.from);
    let mut explanation = Explanation {
        method: method.clone(),
        url: url.show(),
        from,
        listener: None,
        host: None,
        route: None,
        outcome: Outcome::Denied {
            status: 0,
            reason: String::new(),
            detail: String::new(),
        },
    };

    let found = snapshot.find_host(&url.host);
    if let Some(index) = found {
        explanation.host = Some(snapshot.host(index).name.to_string());
    }
    let Some(listener) = accepting(snapshot, &url) else {
        explanation.outcome = denied(
            0,
            "no_listener",
            match url.tls {
                true => "No listener speaks TLS.",
                false => "No listener speaks clear text; the URL must begin with https://.",
            },
        );
        return Ok(explanation);
    };
    explanation.listener = Some(Place {
        name: listener.name.to_string(),
        addresses: listener.addresses.iter().map(ToString::to_string).collect(),
        tls: listener.tls,
    });
    let serves = found.is_some_and(|index| snapshot.host(index).is_on(&listener.name));
    if url.tls && !serves && listener.unknown_sni == UnknownSni::Refuse {
        explanation.outcome = denied(
            0,
            "unrecognized_name",
            "The handshake is refused: no route serves this host on this listener.",
        );
        return Ok(explanation);
    }

    let mut head = RequestHead::new();
    head.buffer().extend_from_slice(
        format!(
            "{method} {} HTTP/1.1\r\nHost: {}\r\n\r\n",
            url.target, url.authority
        )
        .as_bytes(),
    );
    match head.parse(&snapshot.limits.head) {
        Ok(Parse::Complete) => {}
        Ok(Parse::Partial) => return Err(QuestionError::Url),
        Err(error) => {
            explanation.outcome = denied(error.status(), error.reason(), &format!("{error}."));
            return Ok(explanation);
        }
    }
    let caller = Caller {
        address: from,
        server_name: url.tls.then_some(&*url.host),
        tls: url.tls,
        identity: None,
    };
    match snapshot.authorize(&listener.name, &caller, &head) {
        Verdict::Deny(denial) => {
            explanation.route = denial
                .route
                .as_ref()
                .and_then(|name| {
                    let index = found?;
                    snapshot
                        .host(index)
                        .routes()
                        .iter()
                        .find(|route| route.name == *name)
                })
                .map(|route| view(route, addresses));
            explanation.outcome = denied(denial.status, denial.reason, denial.detail);
        }
        // A URL has no asterisk-form.
        Verdict::Greet => {}
        Verdict::Allow(permit) => {
            let mut plan = Plan::new();
            // What this gives would carry the key; only the list of what goes is read.
            let _ = permit.inject("", &head, BodyFraming::None, None, false, &mut plan);
            let path = permit.route().upstream_path_of(head.path());
            let query = head.query().map_or(String::new(), |query| {
                let count = wire::target::params(query).count();
                format!(
                    " (with {count} query parameter{} before stripping)",
                    if count == 1 { "" } else { "s" }
                )
            });
            explanation.route = Some(view(permit.route(), addresses));
            explanation.outcome = Outcome::Allowed {
                sends: format!(
                    "{method} {}{query}",
                    without_keys(&String::from_utf8_lossy(&path))
                ),
                stripped: plan.stripped().iter().map(str::to_owned).collect(),
            };
        }
    }
    Ok(explanation)
}

fn denied(status: u16, reason: &str, detail: &str) -> Outcome {
    Outcome::Denied {
        status,
        reason: reason.to_owned(),
        detail: detail.to_owned(),
    }
}

/// The listener that the URL means: of its kind, and its port if one has that
/// port. In front of a listener there may be a port mapping, so another port is
/// better than none.
fn accepting<'s>(snapshot: &'s Snapshot, url: &Url) -> Option<&'s Listener> {
    let of_kind = || {
        snapshot
            .listeners
            .iter()
            .filter(|listener| listener.tls == url.tls)
    };
    let has_port = |listener: &&Listener| {
        listener
            .addresses
            .iter()
            .any(|address| address.port() == url.port)
    };
    let serves = |listener: &&Listener| {
        snapshot
            .find_host(&url.host)
            .is_some_and(|index| snapshot.host(index).is_on(&listener.name))
    };
    of_kind()
        .find(|listener| has_port(listener) && serves(listener))
        .or_else(|| of_kind().find(has_port))
        .or_else(|| of_kind().find(serves))
        .or_else(|| of_kind().next())
}

/// Who may use a route, as one line.
fn callers(route: &Route) -> String {
    let mut who: Vec<String> = match &route.callers {
        Callers::Open => vec!["open (loopback and private peers)".to_owned()],
        Callers::Networks(networks) => networks.iter().map(ToString::to_string).collect(),
        Callers::Named { networks, callers } => {
            let networks = networks.iter().map(ToString::to_string);
            networks
                .chain(callers.iter().map(|one| named(one)))
                .collect()
        }
    };
    for network in &route.denied {
        who.push(format!("not {network}"));
    }
    who.join(", ")
}

/// `edge (192.0.2.7/32 and token)`
fn named(caller: &NamedCaller) -> String {
    let mut kinds: Vec<String> = caller.networks.iter().map(ToString::to_string).collect();
    if kinds.len() > 1 {
        kinds = vec![format!("one of {}", kinds.join(" "))];
    }
    if !caller.tokens.is_empty() {
        kinds.push("token".to_owned());
    }
    if !caller.certificates.is_empty() {
        kinds.push("certificate".to_owned());
    }
    let and = match caller.require {
        Require::All => " and ",
        Require::Any => " or ",
    };
    format!("{} ({})", caller.name, kinds.join(and))
}

fn view(route: &Route, addresses: &AddressBook) -> RouteView {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let credential = route.credential.as_ref().map(|(_, credential)| credential);
    RouteView {
        name: route.name.to_string(),
        path: text(&route.path),
        methods: route.methods.iter().map(ToString::to_string).collect(),
        callers: callers(route),
        strip_headers: sorted(route.strip_fields.iter()),
        strip_query: sorted(
            route
                .strip_params
                .iter()
                .filter(|name| !route.keep_params.contains(name.as_bytes())),
        ),
        keep_query: sorted(route.keep_params.iter()),
        strip_cookies: route.strip_cookies,
        strip_response_headers: sorted(route.strip_response_fields.iter()),
        forwarded: route
            .forwarding
            .iter()
            .flat_map(|rule| &rule.fields)
            .map(|field| field.name().to_ascii_lowercase())
            .collect(),
        writes: credential.map(|credential| credential.injection().describe()),
        credential: credential.map(|credential| CredentialView {
            name: credential.name().to_owned(),
            version: credential.version().to_owned(),
            fingerprint: credential.fingerprint(),
        }),
        upstream: route.upstream.name.to_string(),
        upstream_host: route.upstream.host.to_string(),
        tls_name: route.upstream.tls_name.to_str().into_owned(),
        addresses: addresses
            .addresses(&route.upstream)
            .iter()
            .map(ToString::to_string)
            .collect(),
        response_head_timeout: route
            .response_head_timeout
            .unwrap_or(route.upstream.limits.response_head_timeout),
        body_bytes_max: (route.body_bytes_max != u64::MAX).then_some(route.body_bytes_max),
        audit_required: route.audit_required,
    }
}

fn sorted<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    names
}

/// A URL as a caller's client would take it apart; the path stays as it is, since
/// how a path is spelled can matter.
struct Url {
    tls: bool,
    host: String,
    port: u16,
    authority: String,
    target: String,
}

impl Url {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "https" | "wss" => true,
            "http" | "ws" => false,
            _ => return None,
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        let (host, port) = authority_host(authority.as_bytes())?;
        let host = std::str::from_utf8(host)
            .ok()?
            .trim_end_matches('.')
            .to_ascii_lowercase();
        if !target.bytes().all(|byte| byte.is_ascii_graphic()) || host.is_empty() {
            return None;
        }
        Some(Self {
            tls,
            host,
            port: port.unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.to_owned(),
            target: match target {
                "" => "/".to_owned(),
                query if query.starts_with('?') => format!("/{query}"),
                path => path.to_owned(),
            },
        })
    }

    /// Without the values in its query.
    fn show(&self) -> String {
        let (path, query) = match self.target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (&*self.target, None),
        };
        let mut shown = format!(
            "{}://{}{}",
            if self.tls { "https" } else { "http" },
            self.authority,
            without_keys(path)
        );
        if let Some(query) = query {
            let names: Vec<String> = wire::target::params(query.as_bytes())
                .map(|param| {
                    let name = query.get(param.name.clone()).unwrap_or_default();
                    let valued = param.name.len() < param.whole.len();
                    format!(
                        "{}{}",
                        quote(name).trim_matches('`'),
                        if valued { "=<hidden>" } else { "" }
                    )
                })
                .collect();
            shown.push('?');
            shown.push_str(&names.join("&"));
        }
        shown
    }
}

impl Explanation {
    /// Whether the request would be sent on.
    pub fn is_allowed(&self) -> bool {
        matches!(self.outcome, Outcome::Allowed { .. })
    }

    /// The same for machines.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::json;
        let listener = self.listener.as_ref().map(
            |listener| json!({ "name": listener.name, "addresses": listener.addresses, "tls": listener.tls }),
        );
        let route = self.route.as_ref().map(|route| {
            json!({
                "name": route.name,
                "path": route.path,
                "methods": route.methods,
                "callers": route.callers,
                "strips": {
                    "headers": route.strip_headers,
                    "query": route.strip_query,
                    "keeps_query": route.keep_query,
                    "cookies": route.strip_cookies,
                    "response_headers": route.strip_response_headers,
                },
                "writes": route.writes,
                "forwarded": route.forwarded,
                "credential": route.credential.as_ref().map(|credential| json!({
                    "name": credential.name,
                    "version": credential.version,
                    "fingerprint": credential.fingerprint.map(|fingerprint| fingerprint.to_string()),
                })),
                "upstream": {
                    "name": route.upstream,
                    "host": route.upstream_host,
                    "tls_name": route.tls_name,
                    "addresses": route.addresses,
                },
                "response_head_timeout": show_period(route.response_head_timeout),
                "body_bytes_max": route.body_bytes_max,
                "audit_required": route.audit_required,
            })
        });
        let mut json = json!({
            "method": self.method,
            "url": self.url,
            "from": self.from.to_string(),
            "listener": listener,
            "host": self.host,
            "route": route,
        });
        let outcome = match &self.outcome {
            Outcome::Allowed { sends, stripped } => {
                json!({ "verdict": "allowed", "sends": sends, "stripped": stripped })
            }
            Outcome::Denied {
                status,
                reason,
                detail,
            } => {
                json!({ "verdict": "denied", "status": status, "reason": reason, "detail": detail })
            }
        };
        json["outcome"] = outcome;
        json
    }
}

impl fmt::Display for CredentialView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (version {}", self.name, self.version)?;
        if let Some(fingerprint) = self.fingerprint {
            write!(f, ", {fingerprint}")?;
        }
        f.write_str(")")
    }
}

/// For a terminal: one fact per line.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {} from {}", self.method, self.url, self.from)?;
        let mut line = |label: &str, text: &str| writeln!(f, "  {label:<11}{text}");
        let list = |names: &[String]| match names {
            [] => "none".to_owned(),
            names => names.join(", "),
        };
        if let Some(listener) = &self.listener {
            let kind = if listener.tls { "TLS" } else { "clear text" };
            line(
                "listener",
                &format!(
                    "{} ({kind}, {})",
                    listener.name,
                    listener.addresses.join(", ")
                ),
            )?;
        }
        if let Some(host) = &self.host {
            line("host", host)?;
        }
        if let Some(route) = &self.route {
            let methods = if route.methods.is_empty() {
                "all methods".to_owned()
            } else {
                route.methods.join(", ")
            };
            line(
                "route",
                &format!("{} ({methods} under {})", route.name, route.path),
            )?;
            line("callers", &route.callers)?;
            line("strips", &format!("headers {}", list(&route.strip_headers)))?;
            line(
                "",
                &format!("query parameters {}", list(&route.strip_query)),
            )?;
            if !route.keep_query.is_empty() {
                line("", &format!("but not {}", list(&route.keep_query)))?;
            }
            if route.strip_cookies {
                line("", "cookies")?;
            }
            if !route.strip_response_headers.is_empty() {
                let headers = list(&route.strip_response_headers);
                line("", &format!("headers of answers {headers}"))?;
            }
            match (&route.writes, &route.credential) {
                (Some(writes), Some(credential)) => {
                    line("writes", writes)?;
                    line("credential", &credential.to_string())?;
                }
                _ => line("writes", "nothing")?,
            }
            if !route.forwarded.is_empty() {
                line("forwards", &list(&route.forwarded))?;
            }
            line(
                "upstream",
                &format!(
                    "{} (Host: {}, certificate of {})",
                    route.upstream, route.upstream_host, route.tls_name
                ),
            )?;
            line(
                "",
                &match route.addresses.as_slice() {
                    [] => "addresses: looked up by name".to_owned(),
                    addresses => format!("addresses: {}", addresses.join(", ")),
                },
            )?;
            line(
                "limits",
                &format!(
                    "response head {}, body {}, audit {}",
                    show_period(route.response_head_timeout),
                    route
                        .body_bytes_max
                        .map_or("unlimited".to_owned(), |bytes| format!("{bytes} bytes")),
                    if route.audit_required {
                        "required"
                    } else {
                        "best-effort"
                    },
                ),
            )?;
        }
        match &self.outcome {
            Outcome::Allowed { sends, stripped } => {
                if !stripped.is_empty() {
                    line(
                        "stripped",
                        &format!("{} from this URL", stripped.join(", ")),
                    )?;
                }
                line("sends", sends)?;
                line("verdict", "allowed")
            }
            Outcome::Denied {
                status: 0,
                reason,
                detail,
            } => line("verdict", &format!("denied: {reason}. {detail}")),
            Outcome::Denied {
                status,
                reason,
                detail,
            } => line("verdict", &format!("denied: {status} {reason}. {detail}")),
        }
    }
}
