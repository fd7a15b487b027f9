//! What the driver's errors mean to the caller.

use std::time::Duration;

use ::scylla::errors::{
    ConnectionError, ConnectionPoolError, ConnectionSetupRequestErrorKind, DbError, ExecutionError, MetadataError,
    NewSessionError, PrepareError, RequestAttemptError, SchemaAgreementError,
};

use crate::RecordsError;

/// Why an attempt failed.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// It may go well in a moment.
    Passing(Trouble),
    /// It would fail again.
    Lasting(RecordsError),
}

/// What passes.
#[derive(Debug, Clone)]
pub(super) enum Trouble {
    /// There is no connection.
    NoConnection(String),
    /// There was no answer in time.
    NoAnswer(Duration),
    /// The servers say that they cannot.
    Refused(String),
    /// A server does not know yet what others do.
    Unsettled(RecordsError),
}

impl Trouble {
    /// As told to the caller; `nodes` names the store.
    pub(super) fn into_error(self, nodes: &str) -> RecordsError {
        match self {
            Self::NoConnection(reason) => RecordsError::Unreachable { nodes: nodes.to_owned(), reason },
            Self::NoAnswer(after) => RecordsError::TimedOut { after },
            Self::Refused(reason) => RecordsError::Unavailable(reason),
            Self::Unsettled(error) => error,
        }
    }
}

/// What a failure means while tables are being made, by this node or another: what a server does not know yet it may know in a moment.
pub(super) fn unsettled<E>(meaning: impl Fn(&E) -> Fault) -> impl Fn(&E) -> Fault {
    move |error| match meaning(error) {
        Fault::Lasting(error @ RecordsError::Refused { .. }) => Fault::Passing(Trouble::Unsettled(error)),
        fault => fault,
    }
}

/// What a request's failure means.
pub(super) fn of_request(error: &ExecutionError) -> Fault {
    match error {
        ExecutionError::RequestTimeout(after) => Fault::Passing(Trouble::NoAnswer(*after)),
        ExecutionError::EmptyPlan => Fault::Passing(Trouble::NoConnection("no node is up".into())),
        ExecutionError::ConnectionPoolError(error) => of_pool(error),
        ExecutionError::LastAttemptError(error) => of_attempt(error),
        ExecutionError::PrepareError(error) => of_prepare(error),
        ExecutionError::SchemaAgreementError(error) => of_agreement(error),
        ExecutionError::MetadataError(error) => of_metadata(error),
        error => refused(error.to_string()),
    }
}

/// What it means that a statement could not be prepared.
pub(super) fn of_prepare(error: &PrepareError) -> Fault {
    match error {
        PrepareError::ConnectionPoolError(error) => of_pool(error),
        PrepareError::AllAttemptsFailed { first_attempt } => of_attempt(first_attempt),
        error => Fault::Passing(Trouble::Refused(error.to_string())),
    }
}

/// What it means that the servers do not agree on the schema.
pub(super) fn of_agreement(error: &SchemaAgreementError) -> Fault {
    Fault::Passing(Trouble::Refused(error.to_string()))
}

/// What it means that there is no session at all.
pub(super) fn of_session(error: &NewSessionError) -> Fault {
    match error {
        NewSessionError::MetadataError(error) => of_metadata(error),
        error => Fault::Passing(Trouble::NoConnection(error.to_string())),
    }
}

fn of_metadata(error: &MetadataError) -> Fault {
    match error {
        MetadataError::ConnectionPoolError(error) => of_pool(error),
        error => Fault::Passing(Trouble::Refused(error.to_string())),
    }
}

fn of_pool(error: &ConnectionPoolError) -> Fault {
    let ConnectionPoolError::Broken { last_connection_error } = error else {
        return Fault::Passing(Trouble::NoConnection(error.to_string()));
    };
    if let ConnectionError::ConnectionSetupRequestError(setup) = last_connection_error {
        match setup.get_error() {
            ConnectionSetupRequestErrorKind::DbError(DbError::AuthenticationError | DbError::Unauthorized, said) => {
                return unauthorized(said);
            }
            ConnectionSetupRequestErrorKind::MissingAuthentication => {
                let reason = "it asks for a user and a password, and none are configured".to_owned();
                return Fault::Lasting(RecordsError::Unauthorized { reason });
            }
            _ => {}
        }
    }
    Fault::Passing(Trouble::NoConnection(last_connection_error.to_string()))
}

fn of_attempt(error: &RequestAttemptError) -> Fault {
    let RequestAttemptError::DbError(kind, said) = error else {
        return match error {
            RequestAttemptError::BrokenConnectionError(_) | RequestAttemptError::UnableToAllocStreamId => {
                Fault::Passing(Trouble::NoConnection(error.to_string()))
            }
            error => refused(error.to_string()),
        };
    };
    match kind {
        DbError::Unavailable { .. }
        | DbError::Overloaded
        | DbError::IsBootstrapping
        | DbError::TruncateError
        | DbError::ReadTimeout { .. }
        | DbError::WriteTimeout { .. }
        | DbError::ReadFailure { .. }
        | DbError::WriteFailure { .. }
        | DbError::ServerError
        | DbError::Unprepared { .. }
        | DbError::RateLimitReached { .. } => Fault::Passing(Trouble::Refused(format!("{kind}: {said}"))),
        DbError::AuthenticationError | DbError::Unauthorized => unauthorized(said),
        kind => refused(format!("{kind}: {said}")),
    }
}

/// Servers keep users in tables, and call it a failed login, too, that a quorum of those cannot be read.
fn unauthorized(said: &str) -> Fault {
    let reason = said.to_owned();
    if said.starts_with("Unable to perform") || said.contains("Cannot achieve consistency level") {
        return Fault::Passing(Trouble::NoConnection(reason));
    }
    Fault::Lasting(RecordsError::Unauthorized { reason })
}

fn refused(reason: String) -> Fault {
    Fault::Lasting(RecordsError::Refused { reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: DbError) -> Fault {
        of_request(&ExecutionError::LastAttemptError(RequestAttemptError::DbError(kind, "said".into())))
    }

    #[test]
    fn what_passes_is_told_from_what_lasts() {
        let timeout = ExecutionError::RequestTimeout(Duration::from_secs(1));
        assert!(matches!(of_request(&timeout), Fault::Passing(Trouble::NoAnswer(_))));
        assert!(matches!(answer(DbError::Overloaded), Fault::Passing(Trouble::Refused(_))));
        assert!(matches!(answer(DbError::Invalid), Fault::Lasting(RecordsError::Refused { .. })));
        let no_quorum = "Unable to perform authentication: Cannot achieve consistency level LOCAL_QUORUM";
        assert!(matches!(unauthorized(no_quorum), Fault::Passing(_)));
        assert!(matches!(answer(DbError::Unauthorized), Fault::Lasting(RecordsError::Unauthorized { .. })));
    }
}
