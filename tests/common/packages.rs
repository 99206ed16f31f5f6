//! Packages of other languages, fetched once for all test processes. `.ci/tools` sees to pip and npm.
#![allow(dead_code)] // Each test binary uses a part.

use std::path::Path;
use std::process::Command;

/// Does `install` unless what it made for the same `wanted` is there. One process at a time: others wait for the lock.
pub(crate) fn once(to: &Path, wanted: &[u8], install: impl FnOnce()) {
    std::fs::create_dir_all(to).unwrap();
    let lock = std::fs::File::create(to.join("lock")).unwrap();
    lock.lock().unwrap();
    let mark = to.join("installed.txt");
    if std::fs::read(&mark).ok().as_deref() != Some(wanted) {
        install();
        std::fs::write(&mark, wanted).unwrap();
    }
}

/// `python3 -m pip` with these arguments.
pub(crate) fn pip(args: &[&str]) {
    python(&[&["-m", "pip", "--quiet", "--disable-pip-version-check"], args].concat());
}

/// Python with these arguments, which must do.
pub(crate) fn python(args: &[&str]) {
    let status = Command::new("python3").args(args).status().expect("python3 is here: `make tools` installs it");
    assert!(status.success(), "python3 {}", args.join(" "));
}

/// What the lock file in `from` names, in `to`, with the files that use it.
pub(crate) fn npm(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().expect("a file"))).unwrap();
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]).current_dir(to);
    let status = npm.status().expect("npm is here: `make tools` installs it");
    assert!(status.success(), "npm could not install what {} names", from.display());
}
