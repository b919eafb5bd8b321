//! Those who change the switch: requests become wishes at the [desk](super::super::desk).

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{delete, get, patch, post, put};
use axum::{Extension, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use utoipa::{IntoParams, OpenApi};

use crate::api::config::{Changed, Config, MirrorConfig, PortConfig};
use crate::api::{Flushed, Problem, Station};
use crate::config::{MAX_FILE_SIZE, Settings};
use crate::sys::clock;
use crate::wire::ethernet::MacAddr;

use super::super::desk::{Outcome, Refusal, Wish};
use super::super::settings::{Mistakes, describe, parse, settle};
use super::{View, no_port, problem, unknown_port};

/// Who asks.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// For the log.
    pub name: String,
    /// Whether to look is all that it may.
    pub looks_only: bool,
}

/// Changes, as a part of the specification.
#[derive(OpenApi)]
#[openapi(paths(
    config,
    put_config,
    patch_config,
    reload,
    add_port,
    patch_port,
    remove_port,
    give_mac,
    remove_mac,
    flush_macs,
    add_mirror,
    remove_mirror
))]
pub(super) struct Changes;

/// What only they may do who may change the switch.
pub(super) fn for_admins(router: Router<Arc<View>>) -> Router<Arc<View>> {
    let changes = router
        .route("/v1/config", put(put_config).patch(patch_config))
        .route("/v1/reload", post(reload))
        .route("/v1/ports", post(add_port))
        .route("/v1/ports/{name}", patch(patch_port).delete(remove_port))
        .route("/v1/macs", delete(flush_macs))
        .route("/v1/macs/{address}", delete(remove_mac).put(give_mac))
        .route("/v1/mirrors", post(add_mirror).delete(remove_mirror));
    let changes = changes
        .layer(DefaultBodyLimit::max(MAX_FILE_SIZE as usize))
        .layer(middleware::from_fn(refuse_lookers));
    changes.route("/v1/config", get(config))
}

/// Lets those pass who may do more than look.
async fn refuse_lookers(
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    if caller.looks_only { not_permitted() } else { next.run(request).await }
}

fn not_permitted() -> Response {
    let error = "not permitted: only root and the user that the switch runs as may do this, by the \
                 API's socket";
    problem(StatusCode::FORBIDDEN, error)
}

/// How a change is asked for.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Mode {
    /// Only say what would change.
    #[serde(default)]
    dry_run: bool,
}

/// Who asks for a change, and how.
struct Asking {
    view: Arc<View>,
    caller: Caller,
    dry_run: bool,
}

impl FromRequestParts<Arc<View>> for Asking {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, view: &Arc<View>) -> Result<Self, Response> {
        let mode = Query::<Mode>::from_request_parts(parts, view).await;
        let Query(Mode { dry_run }) = mode.map_err(|error| answer(Err(bad(error.body_text()))))?;
        // There is one for each connection.
        let caller = parts.extensions.get().cloned().ok_or_else(not_permitted)?;
        Ok(Self { view: Arc::clone(view), caller, dry_run })
    }
}

impl Asking {
    /// Asks for what `edit` makes of the settings as they are said.
    async fn edit(
        self,
        edit: impl FnOnce(&mut Config) -> Result<(), Refusal> + Send + 'static,
    ) -> Response {
        let edit = |settings: &Settings| {
            let mut config = describe(settings);
            edit(&mut config)?;
            Ok(settle(&config)?)
        };
        self.wish(Wish::Edit(Box::new(edit))).await
    }

    async fn wish(self, wish: Wish) -> Response {
        answer(self.view.desk().ask(wish, self.caller.name, self.dry_run).await)
    }
}

fn bad(error: impl ToString) -> Refusal {
    Refusal::Wrong(error.to_string())
}

impl From<Mistakes> for Refusal {
    fn from(mistakes: Mistakes) -> Self {
        bad(mistakes)
    }
}

/// With the field that it is about.
fn wrong_body(error: serde_path_to_error::Error<serde_json::Error>) -> Refusal {
    let field = error.path().to_string();
    let error = error.into_inner();
    bad(if field == "." { error.to_string() } else { format!("`{field}`: {error}") })
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let mut body = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut body).map_err(wrong_body)?;
    body.end().map_err(bad)?;
    Ok(value)
}

fn answer(outcome: Outcome) -> Response {
    match outcome {
        Ok(changed) => Json(changed).into_response(),
        Err(refusal) => {
            let status = match refusal {
                Refusal::Unknown(_) => StatusCode::NOT_FOUND,
                Refusal::Wrong(_) => StatusCode::BAD_REQUEST,
                Refusal::Impossible(_) => StatusCode::CONFLICT,
            };
            problem(status, &refusal.to_string())
        }
    }
}

/// All settings.
#[utoipa::path(get, path = "/v1/config", responses((status = 200, body = Config)))]
async fn config(State(view): State<Arc<View>>) -> Json<Config> {
    Json(describe(&view.settings()))
}

/// Goes over to these settings, all of them or none. As JSON, or as the text of a configuration file
/// with the type `application/toml`.
#[utoipa::path(
    put,
    path = "/v1/config",
    params(Mode),
    request_body = Config,
    responses(
        (status = 200, body = Changed),
        (status = 400, description = "They are wrong", body = Problem),
        (status = 409, description = "This process can't go over to them", body = Problem)
    )
)]
async fn put_config(asking: Asking, headers: HeaderMap, body: Bytes) -> Response {
    let is_toml = headers.get("content-type").is_some_and(|is| is == "application/toml");
    // Here, and not by the one thread that makes the changes.
    let wanted = if is_toml {
        let text = std::str::from_utf8(&body).map_err(bad);
        text.and_then(|text| Ok(parse(text)?))
    } else {
        json::<Config>(&body).and_then(|config| Ok(settle(&config)?))
    };
    match wanted {
        Ok(wanted) => asking.wish(Wish::Edit(Box::new(move |_| Ok(wanted)))).await,
        Err(refusal) => answer(Err(refusal)),
    }
}

/// Changes some settings: a JSON merge patch (RFC 7396).
#[utoipa::path(
    patch,
    path = "/v1/config",
    params(Mode),
    request_body = Config,
    responses(
        (status = 200, body = Changed),
        (status = 400, description = "They are wrong", body = Problem),
        (status = 409, description = "This process can't go over to them", body = Problem)
    )
)]
async fn patch_config(asking: Asking, body: Bytes) -> Response {
    let edit = move |config: &mut Config| {
        *config = patched(config, json(&body)?)?;
        Ok(())
    };
    asking.edit(edit).await
}

/// Goes over to what the configuration file says now.
#[utoipa::path(
    post,
    path = "/v1/reload",
    params(Mode),
    responses(
        (status = 200, body = Changed),
        (status = 400, description = "The file is wrong", body = Problem),
        (status = 409, description = "There is no file, or this process can't", body = Problem)
    )
)]
async fn reload(asking: Asking) -> Response {
    asking.wish(Wish::File).await
}

/// Adds a port.
#[utoipa::path(
    post,
    path = "/v1/ports",
    params(Mode),
    request_body = PortConfig,
    responses(
        (status = 200, body = Changed),
        (status = 400, description = "It is wrong", body = Problem),
        (status = 409, description = "There is one, or it can't be opened", body = Problem)
    )
)]
async fn add_port(asking: Asking, body: Bytes) -> Response {
    let edit = move |config: &mut Config| {
        let port: PortConfig = json(&body)?;
        if let Some(name) = port.name.as_deref().filter(|name| find(config, name).is_ok()) {
            let error = format!("there is a port {name:?}: change it with `ringswitch port set`");
            return Err(Refusal::Impossible(error));
        }
        config.port.push(port);
        Ok(())
    };
    asking.edit(edit).await
}

/// Changes settings of a port: a JSON merge patch (RFC 7396).
#[utoipa::path(
    patch,
    path = "/v1/ports/{name}",
    params(("name" = String, Path, description = "The port's name"), Mode),
    request_body = PortConfig,
    responses(
        (status = 200, body = Changed),
        (status = 400, description = "They are wrong", body = Problem),
        (status = 404, description = "There is no port of that name", body = Problem),
        (status = 409, description = "It can't be opened so", body = Problem)
    )
)]
async fn patch_port(asking: Asking, Path(name): Path<String>, body: Bytes) -> Response {
    let edit = move |config: &mut Config| {
        let port = find(config, &name)?;
        let wanted: PortConfig = patched(port, json(&body)?)?;
        if wanted.name != port.name {
            return Err(bad(
                "a port keeps its name: add one of the other name, and remove this one",
            ));
        }
        *port = wanted;
        Ok(())
    };
    asking.edit(edit).await
}

/// Removes a port. Its guest is disconnected.
#[utoipa::path(
    delete,
    path = "/v1/ports/{name}",
    params(("name" = String, Path, description = "The port's name"), Mode),
    responses(
        (status = 200, body = Changed),
        (status = 400, description = "Something else needs it", body = Problem),
        (status = 404, description = "There is no port of that name", body = Problem)
    )
)]
async fn remove_port(asking: Asking, Path(name): Path<String>) -> Response {
    let edit = move |config: &mut Config| {
        find(config, &name)?;
        config.port.retain(|port| port.name.as_ref() != Some(&name));
        Ok(())
    };
    asking.edit(edit).await
}

/// Gives an address to a port: it is there and nowhere else from now on.
#[utoipa::path(
    put,
    path = "/v1/macs/{address}",
    params(("address" = String, Path, description = "As in 52:54:00:12:34:56"), Mode),
    request_body = Station,
    responses(
        (status = 200, body = Changed),
        (status = 400, description = "It is wrong", body = Problem),
        (status = 404, description = "There is no port of that name", body = Problem)
    )
)]
async fn give_mac(asking: Asking, Path(address): Path<String>, body: Bytes) -> Response {
    let edit = move |config: &mut Config| {
        let Station { port } = json(&body)?;
        find(config, &port)?;
        let address = said(&address)?;
        config.port.iter_mut().for_each(|port| port.macs.retain(|mac| *mac != address));
        find(config, &port)?.macs.push(address);
        Ok(())
    };
    asking.edit(edit).await
}

/// Forgets an address, whether it was learned or given.
#[utoipa::path(
    delete,
    path = "/v1/macs/{address}",
    params(("address" = String, Path, description = "As in 52:54:00:12:34:56"), Mode),
    responses(
        (status = 200, body = Changed),
        (status = 400, description = "It is no address", body = Problem),
        (status = 404, description = "Nobody has it", body = Problem)
    )
)]
async fn remove_mac(asking: Asking, Path(address): Path<String>) -> Response {
    let (address, number) = match (said(&address), address.parse::<MacAddr>()) {
        (Ok(said), Ok(mac)) => (said, mac.to_u64()),
        (said, _) => return answer(said.map(|_| Changed::default())),
    };
    let given = |config: &Config| config.port.iter().any(|port| port.macs.contains(&address));
    if !given(&describe(&asking.view.settings())) {
        let nobody = || Refusal::Unknown(format!("no port has {address}; see `show macs`"));
        let known = asking.dry_run || asking.view.shared().macs.remove(number);
        let changed = Changed { changed: vec![address.clone()], ..Changed::default() };
        return answer(known.then_some(changed).ok_or_else(nobody));
    }
    let edit = move |config: &mut Config| {
        config.port.iter_mut().for_each(|port| port.macs.retain(|mac| *mac != address));
        Ok(())
    };
    asking.edit(edit).await
}

/// Whose addresses are to be forgotten.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Flush {
    /// The port's name; all ports unless said.
    port: Option<String>,
}

/// Forgets the addresses that were learned. Those that were given stay.
#[utoipa::path(
    delete,
    path = "/v1/macs",
    params(Flush, Mode),
    responses(
        (status = 200, body = Flushed),
        (status = 404, description = "There is no port of that name", body = Problem)
    )
)]
async fn flush_macs(asking: Asking, Query(Flush { port }): Query<Flush>) -> Response {
    let Asking { view, caller, dry_run } = asking;
    let ports = view.shared().ports.now();
    let id = match &port {
        None => None,
        Some(name) => match ports.find(name) {
            Some(port) => Some(port.id.0),
            None => return no_port(&view, name),
        },
    };
    let macs = &view.shared().macs;
    if dry_run {
        let mut forgotten = 0;
        macs.for_each(clock::coarse_seconds(), |_, port, age| {
            let is_there = id.is_none_or(|id| id == port);
            forgotten += u32::from(is_there && age.is_some());
        });
        return Json(Flushed { forgotten }).into_response();
    }
    let forgotten = macs.flush(id);
    let whose = port.as_deref().unwrap_or("all ports");
    log::info!("addresses of {whose} forgotten by {}: {forgotten}", caller.name);
    Json(Flushed { forgotten }).into_response()
}

/// Adds a mirror.
#[utoipa::path(
    post,
    path = "/v1/mirrors",
    params(Mode),
    request_body = MirrorConfig,
    responses(
        (status = 200, body = Changed),
        (status = 400, description = "It is wrong", body = Problem),
        (status = 409, description = "There is one between these ports", body = Problem)
    )
)]
async fn add_mirror(asking: Asking, body: Bytes) -> Response {
    let edit = move |config: &mut Config| {
        let mirror: MirrorConfig = json(&body)?;
        let ends = |of: &MirrorConfig| (of.port.clone(), of.to.clone());
        if config.mirror.iter().any(|other| ends(other) == ends(&mirror)) {
            let error = "there is a mirror between these ports: remove it first";
            return Err(Refusal::Impossible(error.to_owned()));
        }
        config.mirror.push(mirror);
        Ok(())
    };
    asking.edit(edit).await
}

/// Which mirror.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Ends {
    /// Whose frames it copies.
    port: String,
    /// Where the copies go.
    to: String,
}

/// Removes a mirror.
#[utoipa::path(
    delete,
    path = "/v1/mirrors",
    params(Ends, Mode),
    responses(
        (status = 200, body = Changed),
        (status = 404, description = "There is none between these ports", body = Problem)
    )
)]
async fn remove_mirror(asking: Asking, Query(Ends { port, to }): Query<Ends>) -> Response {
    let edit = move |config: &mut Config| {
        let is_it = |mirror: &MirrorConfig| {
            mirror.port.as_ref() == Some(&port) && mirror.to.as_ref() == Some(&to)
        };
        let count = config.mirror.len();
        config.mirror.retain(|mirror| !is_it(mirror));
        let nothing = || Refusal::Unknown(format!("there is no mirror from {port:?} to {to:?}"));
        if config.mirror.len() < count { Ok(()) } else { Err(nothing()) }
    };
    asking.edit(edit).await
}

/// An address as it is said.
fn said(address: &str) -> Result<String, Refusal> {
    let wrong =
        || bad(format!("{address:?} is no address; expected one such as 52:54:00:12:34:56"));
    let mac: MacAddr = address.parse().map_err(|_| wrong())?;
    Ok(mac.to_string())
}

/// The port of this name.
fn find<'c>(config: &'c mut Config, name: &str) -> Result<&'c mut PortConfig, Refusal> {
    let names: Vec<_> = config.port.iter().filter_map(|port| port.name.as_deref()).collect();
    let unknown = Refusal::Unknown(unknown_port(name, &names));
    let is_it = |port: &&mut PortConfig| port.name.as_deref() == Some(name);
    config.port.iter_mut().find(is_it).ok_or(unknown)
}

/// What a JSON merge patch (RFC 7396) makes of `from`.
fn patched<T: serde::Serialize + DeserializeOwned>(from: &T, patch: Value) -> Result<T, Refusal> {
    let mut value = serde_json::to_value(from).map_err(bad)?;
    merge(&mut value, patch);
    serde_path_to_error::deserialize(value).map_err(wrong_body)
}

/// RFC 7396, section 2. A patch is no deeper than serde_json reads.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        match value {
            Value::Null => drop(target.remove(&key)),
            value => merge(target.entry(key).or_insert(Value::Null), value),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// RFC 7396, appendix A.
    #[test]
    fn patches_are_merged_as_specified() {
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!(["a"]), json!({"a": "b"}), json!({"a": "b"})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let mut merged = target;
            merge(&mut merged, patch);
            assert_eq!(merged, result);
        }
    }
}
