//! The grammar library's errors, in words that mean something to a client. If the library gives a reason as a type,
//! this module puts that type into words. It keeps the library's sentences, but without the library's own names for
//! things and without advice that only a caller of the library could follow.

use std::fmt::Display;

use llguidance::api::StopReason;

/// What a client can do about a grammar that needs too much.
const SIMPLIFY: &str = "use fewer or shorter alternatives, counted repetitions and optional parts";

/// The library's phrases that need other words: the library's phrase, and ours.
const PHRASES: &[(&str, &str)] = &[
    ("<non-verbose/>", ""),
    (". Enable 'coerce_one_of' option to approximate oneOf with anyOf", ", anyOf is"),
    (
        "initial lexer configuration (grammar) too big (limit for this grammar: ",
        "its terminals take too many steps to build (at most ",
    ),
    ("grammar size (number of symbols) too big (limit for this grammar: ", "it has too many symbols (at most "),
    ("Unable to determine if regex is empty: ", "it takes too many steps to tell whether any string satisfies "),
    ("Regex is empty: ", "no string satisfies "),
    ("Schema intersection stack level exceeded", "its `allOf`, `$ref` and keywords beside them nest too deeply"),
    ("schema too large", "its `anyOf`, `allOf`, `enum` and `$ref` come to too many combinations (at most 50000)"),
    ("lookarounds not supported yet; Start", "`^` is supported at the beginning only"),
    ("lookarounds not supported yet; End", "`$` is supported at the end only"),
    ("lookarounds not supported yet; ", "look-around is not supported: "),
    ("Internal error: initial push failed", "no text satisfies it"),
    ("panic: ", "the grammar compiler failed on it: "),
    ("(And (", "all of (("),
    ("(Or (", "one of (("),
    ("(SearchRegex /", "(the pattern /"),
    ("(Regex /", "(the expression /"),
];

/// The library's sentence in one line and plain words.
pub(super) fn sentence(cause: &impl Display) -> String {
    let mut text = cause.to_string();
    // A failed assertion comes with a backtrace, which clients must not see.
    if let Some(at) = text.find("\n<backtrace>") {
        text.truncate(at);
    }
    for (theirs, ours) in PHRASES {
        if text.contains(theirs) {
            text = text.replace(theirs, ours);
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Why a parser stopped, with the library's own sentence if it says more than the reason.
pub(super) fn stop(reason: StopReason, cause: &impl Display) -> String {
    match reason {
        StopReason::NoExtension | StopReason::NoExtensionBias => {
            "no token of the model can come next: nothing satisfies the rest of it".to_owned()
        }
        StopReason::EndOfSentence => "the text has ended".to_owned(),
        StopReason::MaxTokensTotal | StopReason::MaxTokensParser => "its `max_tokens` are used up".to_owned(),
        StopReason::LexerTooComplex => {
            format!("its terminals are too complex ({}); {SIMPLIFY}", sentence(cause))
        }
        StopReason::ParserTooComplex => {
            format!("it can be read in too many ways at once ({}); make its rules unambiguous", sentence(cause))
        }
        StopReason::NotStopped | StopReason::InternalError | StopReason::Cancelled => sentence(cause),
    }
}

/// The message for a part of compiling that takes more steps than its bound.
pub(super) fn too_complex(what: &str, most: u64) -> String {
    format!("{what} takes more than {most} steps; {SIMPLIFY}")
}
