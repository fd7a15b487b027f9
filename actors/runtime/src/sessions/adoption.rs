//! Sessions that come from another log.

use bytes::Bytes;
use parlance_cluster_protocol::{SessionEvent, SessionKey, SessionRecord};

use super::{SessionAnswer, SessionRequest, Sessions, confused, unreadable};
use crate::{
    Refusal,
    adoption::{Compared, Extent, compare},
};

impl Sessions {
    /// Takes over a part of a session of another log: an encoded record, as [`Parts`](crate::adoption::Parts) gives them out. One that was
    /// taken over before is taken for done.
    ///
    /// # Errors
    ///
    /// [`Refusal::SessionExists`] where the session has records that are not of this adoption, [`Refusal::InvalidValue`] for what is no part,
    /// or not the next one; else why it cannot be recorded.
    pub async fn adopt(&self, part: Bytes) -> Result<(), Refusal> {
        let SessionRecord { session, event, .. } = SessionRecord::decode(part).map_err(|error| no_part(&error))?;
        let SessionEvent::Adopted(part) = event else { return Err(no_part(&"it is another record")) };
        match self.ask(&session, SessionRequest::Adopt(Box::new(part))).await? {
            SessionAnswer::Done => Ok(()),
            _ => Err(confused()),
        }
    }

    /// What the record store holds of a session, to be compared with what it came from. `session` is an encoded [`SessionKey`].
    ///
    /// # Errors
    ///
    /// [`Refusal::InvalidValue`] for what is no key, or why the records cannot be read.
    pub async fn compare(&self, session: &[u8], extent: Extent) -> Result<Compared, Refusal> {
        let session = SessionKey::decode(session).map_err(|error| no_part(&error))?;
        self.settle(&session).await?;
        compare(&*self.services.records, &session, extent).await.map_err(unreadable)
    }
}

fn no_part(reason: &dyn std::fmt::Display) -> Refusal {
    let message = format!("the body is no part of a session: {reason}");
    Refusal::InvalidValue { param: "part".into(), message }
}
