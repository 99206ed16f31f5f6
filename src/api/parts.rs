//! Parts of a conversation that a model which reads text cannot be shown: images, sounds, files. Where the user asks about
//! one now, the request is refused, since the answer would be made up. In what was said before, and in the results of tools,
//! a short text stands in its place: there a refusal would end the whole conversation.

use super::problem::Problem;

/// What the model reads in place of a part of type `kind` at `path`; `is_asked`: in the message that the answer is about.
///
/// # Errors
/// 400 for what the user asks about, naming its type.
pub(crate) fn foreign(kind: &str, path: &str, is_asked: bool) -> Result<String, Problem> {
    if is_asked {
        let rule = format!("must be text: this model cannot be shown a part of type {kind:?}");
        return Err(Problem::unsupported(path, &rule));
    }
    let what = match kind {
        "image" | "image_url" | "input_image" => "image",
        "input_audio" | "audio" => "audio",
        "file" | "input_file" | "document" => "file",
        _ => "content",
    };
    Ok(format!("[{what} not shown]"))
}
