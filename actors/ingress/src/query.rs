//! The parameters behind the question mark.

use std::collections::BTreeMap;

use http::Uri;

use crate::api_error::ApiError;

/// Query parameters by name. Unknown ones have no effect: caches and proxies add their own.
#[derive(Debug)]
pub(crate) struct Query(BTreeMap<String, String>);

impl Query {
    /// Reads them; one that occurs twice is refused.
    pub(crate) fn parse(uri: &Uri) -> Result<Self, ApiError> {
        let pairs: axum::extract::Query<Vec<(String, String)>> = axum::extract::Query::try_from_uri(uri)
            .map_err(|_| ApiError::invalid(None, "The query string is malformed."))?;
        let mut found = BTreeMap::new();
        for (name, value) in pairs.0 {
            // The official clients say `include[]=…` once per value; those have no effect here.
            if found.insert(name.clone(), value).is_some() && !name.ends_with("[]") {
                return Err(ApiError::invalid(Some(name.clone()), format!("'{name}' is given twice.")));
            }
        }
        Ok(Self(found))
    }

    /// Takes a text out.
    pub(crate) fn string(&mut self, name: &str) -> Option<String> {
        self.0.remove(name).filter(|value| !value.is_empty())
    }

    /// Takes `true` or `false` out.
    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.string(name).as_deref() {
            None => Ok(None),
            Some("true" | "True" | "1") => Ok(Some(true)),
            Some("false" | "False" | "0") => Ok(Some(false)),
            Some(_) => Err(ApiError::invalid(Some(name.into()), format!("Invalid '{name}': expected true or false."))),
        }
    }

    /// Takes a whole number out.
    pub(crate) fn integer(&mut self, name: &str) -> Result<Option<u64>, ApiError> {
        let invalid =
            |_| ApiError::invalid(Some(name.into()), format!("Invalid '{name}': expected a whole number from 0."));
        self.string(name).map(|text| text.parse().map_err(invalid)).transpose()
    }

    /// Takes the size of a page out: from 1 to `most`.
    pub(crate) fn limit(&mut self, default: usize, most: usize) -> Result<usize, ApiError> {
        let limit = self.integer("limit")?.map_or(default, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        if (1..=most).contains(&limit) {
            return Ok(limit);
        }
        Err(ApiError::invalid(Some("limit".into()), format!("Invalid 'limit': expected 1 to {most}.")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_typed_and_bounded() {
        let uri = Uri::from_static("/x?stream=true&starting_after=7&limit=0&bad=x&include[]=a&include[]=b");
        let mut query = Query::parse(&uri).expect("a good query");
        assert_eq!(query.boolean("stream"), Ok(Some(true)));
        assert_eq!(query.integer("starting_after"), Ok(Some(7)));
        assert_eq!(query.integer("bad").expect_err("not a number").param.as_deref(), Some("bad"));
        assert_eq!(query.limit(20, 100).expect_err("none at all").param.as_deref(), Some("limit"));
        assert_eq!(query.limit(20, 100), Ok(20));
        assert!(Query::parse(&Uri::from_static("/x?a=1&a=2")).is_err());
    }
}
