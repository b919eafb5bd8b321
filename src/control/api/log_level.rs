//! How much is logged, to be seen and changed.

use axum::extract::rejection::JsonRejection;
use axum::response::{IntoResponse, Json, Response};

use crate::api::{LogLevel, Problem};
use crate::logs;

use super::problem;

/// How much is logged.
#[utoipa::path(get, path = "/v1/log-level", responses((status = 200, body = LogLevel)))]
pub async fn show() -> Json<LogLevel> {
    Json(LogLevel { level: logs::level().into() })
}

/// Changes how much is logged, until the process ends. An upgrade brings the configured level back.
#[utoipa::path(
    put,
    path = "/v1/log-level",
    request_body = LogLevel,
    responses(
        (status = 200, body = LogLevel),
        (status = "4XX", description = "This is no level", body = Problem)
    )
)]
pub async fn change(wanted: Result<Json<LogLevel>, JsonRejection>) -> Response {
    match wanted {
        Ok(Json(wanted)) => {
            logs::set_level(wanted.level.into());
            show().await.into_response()
        }
        Err(error) => problem(error.status(), &error.body_text()),
    }
}
