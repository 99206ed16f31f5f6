//! Every kind of setting in one room: read, refused, shown, and written into its field.

use super::*;

words! {
    /// A word.
    pub enum Colour {
        /// One.
        Red = "red",
        /// Another.
        Blue = "blue",
    }
}

settings! {
    /// All kinds.
    #[derive(Debug, PartialEq, Eq)]
    pub(crate) struct Room {
        /// Most sequences
        /// in a step.
        ///
        /// Not in the help.
        pub seqs: usize = 64 => common("room.seqs", "seqs", count(1, 4096, "sequences"));
        /// Not a setting.
        pub pause: Duration = Duration::from_secs(1);
        /// Threads.
        pub threads: Option<usize> = None => setting("room.threads", "room-threads", count(1, 64, "").or("auto"));
        /// A bound.
        pub memory: Option<u64> = None => setting("room.memory", "memory", bytes(0, 1 << 50).or("0"));
        /// A size.
        pub body: usize = 4 << 20 => setting("room.body", "body", bytes(KIB, GIB));
        /// A time.
        pub wait: Duration = Duration::from_secs(15) => setting("room.wait_ms", "wait-ms", millis(100, HOUR_MS));
        /// A switch.
        pub cache: bool = true => setting("room.cache", "cache", Kind::Bool);
        /// A word.
        pub colour: Colour = Colour::Red => setting("room.colour", "colour", Kind::OneOf(Colour::WORDS));
        /// Texts.
        pub hosts: Vec<String> = Vec::new() => setting("room.hosts", "hosts", Kind::List);
        /// A name.
        pub name: String = "stub".to_owned() => setting("room.name", "name", Kind::NonEmpty);
        /// A folder.
        pub folder: Option<PathBuf> = None => setting("room.folder", "folder", Kind::Text);
    }
}

fn all() -> Vec<(&'static Setting, Value)> {
    let mut all = Vec::new();
    let mut list = |setting: &'static Setting, value| {
        all.push((setting, value));
        Ok(None)
    };
    Room::default().visit_settings(&mut list).expect("nothing is written");
    all
}

#[track_caller]
fn check(flag: &str, typed: &str, expect: &str) {
    let (s, _) = all().into_iter().find(|(s, _)| s.flag == flag).expect("a setting");
    let got = match s.parse(typed) {
        Ok(value) => s.show(&value),
        Err(rule) => rule,
    };
    assert_eq!(got, expect);
}

#[test]
fn values_are_read_by_kind_or_refused_by_rule() {
    check("seqs", "8", "8 sequences");
    check("seqs", "0", "must be at least 1, got 0");
    check("seqs", "-1", "must be a whole number, got `-1`");
    check("seqs", "99999999999", "must be at most 4096, got 99999999999");
    check("room-threads", "auto", "auto");
    check("room-threads", "many", "must be a whole number or `auto`, got `many`");
    check("memory", "00", "0 B");
    check("wait-ms", "15s", "must be a whole number of milliseconds, got `15s`");
    check("body", "2MiB", "2 MiB");
    check("body", "2 KiB", "2 KiB");
    check("body", "1500", "1500 B");
    check("body", "2MB", "must be a number of bytes such as 4096 or 8MiB, got `2MB`");
    check("body", "MiB", "must be a number of bytes such as 4096 or 8MiB, got `MiB`");
    check("body", "99999999999GiB", "must be a number of bytes below 2^64, got `99999999999GiB`");
    check("cache", "off", "false");
    check("cache", "maybe", "must be true or false, got `maybe`");
    check("colour", "green", "must be one of red, blue, got `green`");
    check("hosts", " a.test , ", "a.test");
    check("hosts", "", "-");
    check("name", "a\nb", "must be one line of text, got \"a\\nb\"");
    check("name", "", "must not be empty");
    check("folder", "", "-");
}

#[test]
fn the_first_paragraph_of_the_docs_is_the_help() {
    let (seqs, default) = &all()[0];
    assert_eq!((seqs.key, seqs.help().as_str(), seqs.is_common), ("room.seqs", "Most sequences in a step", true));
    assert_eq!((default, seqs.section(), seqs.env().as_str()), (&Value::Number(64), "room", "TALLOW_SEQS"));
    assert_eq!(Room::settings().len(), 10, "`pause` is no setting");
}

#[test]
fn what_is_typed_gets_into_the_fields() {
    let mut room = Room::default();
    let mut read = |typed: &str| {
        let mut words = typed.split(' ');
        let mut next =
            |s: &'static Setting, _| Ok(Some(s.parse(words.next().expect("a word for each")).expect("good")));
        room.visit_settings(&mut next).map(|()| format!("{room:?}"))
    };
    let text = read("8 2 1MiB 1KiB 100 no blue a,b x /y").expect("all fit");
    let expect = "Room { seqs: 8, pause: 1s, threads: Some(2), memory: Some(1048576), body: 1024, wait: 100ms, \
                  cache: false, colour: Blue, hosts: [\"a\", \"b\"], name: \"x\", folder: Some(\"/y\") }";
    assert_eq!(text, expect);
    // As it would be typed, every default gives itself.
    let typed: Vec<String> = all().iter().map(|(s, value)| s.typed(value)).collect();
    assert_eq!(read(&typed.join(" ")).expect("all fit"), format!("{:?}", Room::default()));
}
