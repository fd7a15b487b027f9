//! The version of the rows' layout: a line of text beside the rows, readable whatever lies in them.

use std::{fs, io, path::Path};

use super::{files, keys::damaged};
use crate::RecordsError;

/// The layout that this build writes.
pub(super) const SCHEMA_VERSION: u32 = 1;

const FILE: &str = "schema";
const INTRODUCTION: &str = "parlance records schema ";

/// Rewrites the rows of one version as the next one. Must leave a store that it can be run on again, since a crash may
/// come before the new version is recorded.
pub(super) type Step<S> = fn(&S) -> Result<(), RecordsError>;

/// Records that the store in `dir` has this version, durably.
pub(super) fn write(dir: &Path, version: u32) -> io::Result<()> {
    files::replace(&dir.join(FILE), format!("{INTRODUCTION}{version}\n").as_bytes())
}

/// The version of the store in `dir`; one that this build does not know is an error. `shown` names the store to people.
pub(super) fn read(dir: &Path, shown: &Path) -> Result<u32, RecordsError> {
    let text = fs::read(dir.join(FILE)).map_err(|error| damaged("schema version", error.to_string()))?;
    let version = str::from_utf8(&text).ok().and_then(|text| text.strip_prefix(INTRODUCTION)?.trim_end().parse().ok());
    match version {
        None | Some(0) => Err(damaged("schema version", "the file does not hold one")),
        Some(found) if found > SCHEMA_VERSION => {
            Err(RecordsError::Newer { path: shown.to_owned(), found, supported: SCHEMA_VERSION })
        }
        Some(found) => Ok(found),
    }
}

/// Brings a store from version `found` to the newest: `steps[0]` leads from version 1 to 2, and so on. Each step is
/// recorded through `record` once it is done, so that an interrupted migration goes on where it was.
pub(super) fn migrate<S>(
    found: u32,
    steps: &[Step<S>],
    store: &S,
    record: impl Fn(u32) -> Result<(), RecordsError>,
) -> Result<(), RecordsError> {
    for (version, step) in (1..).zip(steps).filter(|(version, _)| *version >= found) {
        tracing::info!(from = version, to = version + 1, "migrating the records");
        step(store)?;
        record(version + 1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    type Steps = RefCell<Vec<u32>>;

    const STEPS: [Step<Steps>; 3] = [|done| note(done, 1), |done| note(done, 2), |done| note(done, 3)];

    fn note(list: &Steps, entry: u32) -> Result<(), RecordsError> {
        list.borrow_mut().push(entry);
        Ok(())
    }

    #[test]
    fn only_missing_steps_run_and_each_is_recorded() {
        let (done, recorded) = (Steps::default(), Steps::default());
        let result = migrate(2, &STEPS, &done, |version| note(&recorded, version));
        assert!(result.is_ok());
        assert_eq!((done.into_inner(), recorded.into_inner()), (vec![2, 3], vec![3, 4]));
    }

    #[test]
    fn a_failed_step_is_not_recorded() {
        let steps: [Step<()>; 2] = [|()| Ok(()), |()| Err(damaged("row", "test"))];
        let recorded = Steps::default();
        let result = migrate(1, &steps, &(), |version| note(&recorded, version));
        assert!(result.is_err());
        assert_eq!(recorded.into_inner(), [2]);
    }

    #[test]
    fn versions_are_read_back_and_others_refused() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let read = || read(dir.path(), dir.path());
        assert!(matches!(read(), Err(RecordsError::Damaged { .. })));
        write(dir.path(), SCHEMA_VERSION)?;
        assert!(matches!(read(), Ok(SCHEMA_VERSION)));
        write(dir.path(), SCHEMA_VERSION + 1)?;
        assert!(matches!(read(), Err(RecordsError::Newer { found, .. }) if found == SCHEMA_VERSION + 1));
        for garbage in ["", "parlance records schema x\n", "\0\0\0\0"] {
            fs::write(dir.path().join(FILE), garbage)?;
            assert!(matches!(read(), Err(RecordsError::Damaged { .. })), "{garbage:?}");
        }
        Ok(())
    }
}
