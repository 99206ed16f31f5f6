//! Packages from Python's registry, fetched once for all test processes. `.ci/tools` sees to pip.

use std::path::Path;
use std::process::Command;

/// Does `install` unless what it made for the same `wanted` is there. One process at a time: others wait for the lock.
pub fn once(to: &Path, wanted: &[u8], install: impl FnOnce()) {
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
pub fn run(args: &[&str]) {
    python(&[&["-m", "pip", "--quiet", "--disable-pip-version-check"], args].concat());
}

/// Python with these arguments, which must do.
pub fn python(args: &[&str]) {
    let status = Command::new("python3").args(args).status().expect("python3 is here: `make tools` installs it");
    assert!(status.success(), "python3 {}", args.join(" "));
}
