//! The disk itself: it loses what it must and keeps what it must.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
};

use crate::disk::{Anything, Disk, Nothing};

fn sync(path: &Path) {
    File::open(path).and_then(|file| file.sync_all()).expect("synced");
}

fn lose_power(disk: &mut Disk) {
    disk.cut_power(&mut Nothing, || ());
    disk.power_on();
}

/// A disk with one durable file.
fn disk_with(name: &str, content: &[u8]) -> Disk {
    let disk = Disk::mount();
    fs::write(disk.path().join(name), content).expect("written");
    sync(&disk.path().join(name));
    sync(disk.path());
    disk
}

fn names(disk: &Disk) -> Vec<String> {
    let entries = fs::read_dir(disk.path()).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    entries.expect("listed").iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn synced_content_stays_and_later_writes_are_lost() {
    let old = vec![1; 10_000];
    let mut disk = disk_with("file", &old);
    let file = OpenOptions::new().write(true).open(disk.path().join("file")).expect("opened");
    file.write_all_at(&[2; 6000], 3000).expect("written");
    file.write_all_at(&[2; 6000], 30_000).expect("written");
    assert_eq!(fs::read(disk.path().join("file")).expect("read").len(), 36_000);
    drop(file);
    lose_power(&mut disk);
    assert_eq!(fs::read(disk.path().join("file")).expect("read"), old);
    let figures = disk.figures();
    assert_eq!(
        (figures.losses, figures.losses_of_something, figures.bytes_lost, figures.names_lost),
        (1, 1, 12_000, 0)
    );
}

#[test]
fn content_is_kept_as_of_the_last_fdatasync() {
    let mut disk = disk_with("file", b"one");
    let file = OpenOptions::new().write(true).open(disk.path().join("file")).expect("opened");
    file.write_all_at(&[2; 5000], 0).expect("written");
    file.sync_data().expect("synced");
    file.write_all_at(&[3; 5000], 1).expect("written");
    drop(file);
    lose_power(&mut disk);
    assert_eq!(fs::read(disk.path().join("file")).expect("read"), [2; 5000]);
}

#[test]
fn a_cut_that_was_not_synced_is_undone_and_zeros_follow_a_synced_one() {
    let mut disk = disk_with("file", &[1; 9000]);
    let path = disk.path().join("file");
    let open = || OpenOptions::new().write(true).open(&path).expect("opened");
    open().set_len(10).expect("cut");
    lose_power(&mut disk);
    assert_eq!(fs::read(&path).expect("read"), [1; 9000]);
    let file = open();
    file.set_len(10).expect("cut");
    file.set_len(5000).expect("lengthened");
    file.sync_all().expect("synced");
    drop(file);
    lose_power(&mut disk);
    let content = fs::read(&path).expect("read");
    assert_eq!((&content[..10], &content[10..]), (&[1; 10][..], &[0; 4990][..]));
}

#[test]
fn a_synced_file_without_a_synced_name_is_lost() {
    let mut disk = Disk::mount();
    fs::create_dir(disk.path().join("directory")).expect("made");
    fs::write(disk.path().join("directory/file"), b"content").expect("written");
    sync(&disk.path().join("directory/file"));
    sync(&disk.path().join("directory"));
    fs::write(disk.path().join("file"), b"content").expect("written");
    sync(&disk.path().join("file"));
    assert_eq!(names(&disk), ["directory", "file"]);
    lose_power(&mut disk);
    assert_eq!(names(&disk), [""; 0]);
    assert_eq!(disk.figures().names_lost, 2);
}

#[test]
fn a_synced_name_without_synced_content_is_an_empty_file() {
    let mut disk = Disk::mount();
    fs::write(disk.path().join("file"), b"content").expect("written");
    sync(disk.path());
    lose_power(&mut disk);
    assert_eq!(fs::read(disk.path().join("file")).expect("read"), b"");
}

#[test]
fn a_rename_without_a_sync_is_undone() {
    let mut disk = disk_with("old", b"content");
    fs::write(disk.path().join("replaced"), b"other").expect("written");
    sync(&disk.path().join("replaced"));
    sync(disk.path());
    fs::rename(disk.path().join("old"), disk.path().join("replaced")).expect("renamed");
    assert_eq!(names(&disk), ["replaced"]);
    lose_power(&mut disk);
    assert_eq!(fs::read(disk.path().join("old")).expect("read"), b"content");
    assert_eq!(fs::read(disk.path().join("replaced")).expect("read"), b"other");
}

#[test]
fn a_removal_without_a_sync_is_undone_and_a_synced_one_is_not() {
    let mut disk = disk_with("file", b"content");
    fs::remove_file(disk.path().join("file")).expect("removed");
    assert_eq!(names(&disk), [""; 0]);
    lose_power(&mut disk);
    assert_eq!(fs::read(disk.path().join("file")).expect("read"), b"content");
    fs::remove_file(disk.path().join("file")).expect("removed");
    sync(disk.path());
    lose_power(&mut disk);
    assert_eq!(names(&disk), [""; 0]);
}

#[test]
fn any_sectors_of_what_was_not_synced_may_remain() {
    let mut disk = disk_with("file", &[1; 64 * 512]);
    let path = disk.path().join("file");
    let file = OpenOptions::new().write(true).open(&path).expect("opened");
    file.write_all_at(&[2; 64 * 512], 0).expect("written");
    drop(file);
    disk.cut_power(&mut Anything, || ());
    disk.power_on();
    let content = fs::read(&path).expect("read");
    let sectors: Vec<&[u8]> = content.chunks(512).collect();
    assert_eq!(sectors.len(), 64);
    assert!(sectors.iter().all(|sector| *sector == [1; 512] || *sector == [2; 512]), "a sector is torn");
    let kept = sectors.iter().filter(|sector| sector[0] == 2).count();
    assert!((1..64).contains(&kept), "{kept} of 64 remain");
}
