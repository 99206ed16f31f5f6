//! Rendering as the transformers library does it, and what a hostile template can and cannot do.

use super::*;

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage::new(role, content)
}

fn chat() -> Vec<ChatMessage> {
    vec![
        message("system", "Be brief."),
        message("user", " Hi! "),
        message("assistant", "Hello."),
        message("user", "1+1?"),
    ]
}

#[track_caller]
fn render(source: &str, messages: &[ChatMessage]) -> String {
    ChatTemplate::new(source, "<s>", "</s>").and_then(|t| t.render(messages, true)).expect("renders")
}

#[track_caller]
fn fails(source: &str) -> Error {
    let template = ChatTemplate::new(source, "", "").expect("compiles");
    template.render(&chat(), true).expect_err("a hostile template must fail")
}

/// ChatML, also the shape of Qwen's.
const CHATML: &str = "{%- for m in messages %}
{{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Llama 3's shape: headers, trimmed content, the beginning of text written by the template.
const LLAMA3: &str = "{%- for m in messages %}
    {%- set turn = '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' ~ m.content | trim ~ '<|eot_id|>' %}
    {%- if loop.first %}{%- set turn = bos_token ~ turn %}{%- endif %}
    {{- turn }}
{%- endfor %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' if add_generation_prompt }}";

/// Mistral's shape: turns must alternate, the system message moves into the first turn.
const MISTRAL: &str = "{%- if messages[0].role == 'system' -%}
  {%- set system = messages[0].content + '\n\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- set turns = messages -%}{%- endif -%}
{{- bos_token -}}
{%- for m in turns -%}
  {%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('turns must alternate between user and assistant') -}}
  {%- endif -%}
  {%- if m.role == 'user' -%}[INST] {{ (system if loop.first else '') + m.content }} [/INST]
  {%- else -%}{{ ' ' + m.content + eos_token }}{%- endif -%}
{%- endfor -%}";

/// Gemma's shape: the assistant is called model.
const GEMMA: &str = "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{% continue %}{% endif %}
{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}
<start_of_turn>{{ role }}
{{ m['content'].strip() }}<end_of_turn>
{% endfor %}
{% if add_generation_prompt %}<start_of_turn>model
{% endif %}";

/// Phi-3's shape.
const PHI3: &str = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}";

#[test]
fn the_known_families_render() {
    let start = "<|im_start|>";
    let end = "<|im_end|>\n";
    assert_eq!(
        render(CHATML, &chat()),
        format!(
            "{start}system\nBe brief.{end}{start}user\n Hi! {end}{start}assistant\nHello.{end}{start}user\n1+1?{end}{start}assistant\n"
        )
    );
    assert_eq!(
        render(LLAMA3, &chat()[1..2]),
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    assert_eq!(render(MISTRAL, &chat()), "<s>[INST] Be brief.\n\n Hi!  [/INST] Hello.</s>[INST] 1+1? [/INST]");
    assert_eq!(render(GEMMA, &chat()[..2]), "<s><start_of_turn>user\nHi!<end_of_turn>\n<start_of_turn>model\n");
    assert_eq!(render(PHI3, &chat()[1..2]), "<|user|>\n Hi! <|end|>\n<|assistant|>\n");
    let unfinished = ChatTemplate::new(PHI3, "", "</s>").and_then(|t| t.render(&chat()[1..2], false));
    assert_eq!(unfinished.as_deref(), Ok("<|user|>\n Hi! <|end|>\n</s>"));
}

#[test]
fn a_template_may_reject_the_messages_in_its_own_words() {
    let template = ChatTemplate::new(MISTRAL, "<s>", "</s>").expect("compiles");
    let error = template.render(&[message("assistant", "I start.")], true).expect_err("must alternate");
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert_eq!(error.message(), "turns must alternate between user and assistant");
    assert_eq!(error.param(), Some("messages"));
}

#[test]
fn raising_inside_a_macro_is_still_the_requests_fault() {
    let error =
        fails("{% macro check(m) %}{{ raise_exception('no ' ~ m.role) }}{% endmacro %}{{ check(messages[0]) }}");
    assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidRequest, "no system"));
}

#[test]
fn blocks_leave_no_lines_behind() {
    assert_eq!(render("  {% if true %}\nx\n  {% endif %}\ny\n", &[]), "x\ny");
}

#[test]
fn nothing_is_escaped_and_undefined_is_lenient() {
    assert_eq!(render("{{ messages[0].content }}{{ nothing }}", &[message("user", "<a & 'b'>")]), "<a & 'b'>");
    assert_eq!(render("{{ tools is none }}{{ tools is defined }}{{ xs is defined }}", &[]), "TrueTrueFalse");
    assert_eq!(render("{% if messages[0].tool_calls %}x{% else %}y{% endif %}", &chat()), "y");
}

#[test]
fn json_is_pythons() {
    let value = "{'a': [1, 2.5, none, true], 'é': \"<'\\n\", 'e': [], 'o': {}}";
    assert_eq!(
        render(&format!("{{{{ {value} | tojson }}}}"), &[]),
        r#"{"a": [1, 2.5, null, true], "é": "<'\n", "e": [], "o": {}}"#
    );
    assert_eq!(
        render("{{ {'b': [1, {}], 'a': 2} | tojson(indent=2) }}", &[]),
        "{\n  \"b\": [\n    1,\n    {}\n  ],\n  \"a\": 2\n}"
    );
    assert_eq!(
        render("{{ {'b': 1, 'a': [2, 3]} | tojson(sort_keys=true, separators=[',', ':']) }}", &[]),
        r#"{"a":[2,3],"b":1}"#
    );
}

#[test]
fn further_variables_reach_the_template() {
    let template = ChatTemplate::new("{{ tools | tojson }}{{ enable_thinking }}", "", "").expect("compiles");
    let extra = BTreeMap::from([
        ("tools".to_owned(), serde_json::json!([{"name": "f"}])),
        ("enable_thinking".to_owned(), serde_json::json!(false)),
    ]);
    assert_eq!(template.render_here(&[], true, &extra).as_deref(), Ok(r#"[{"name": "f"}]False"#));
}

#[test]
fn generation_tags_render_as_nothing() {
    assert_eq!(render("a {%- generation -%} b {%- endgeneration %} c{% raw %}{% x %}{% endraw %}", &[]), "ab c{% x %}");
}

#[test]
fn every_day_gives_the_same_text() {
    assert_eq!(render("{{ strftime_now('%d %B %Y') }}", &[]), "26 July 2024");
}

#[test]
fn damage_is_found_at_compile_time() {
    for source in ["{% if %}", "{{ 'open", "{% endfor %}", &"x".repeat(SOURCE_BYTES_MAX + 1)] {
        let error = ChatTemplate::new(source, "", "").expect_err("not a template");
        assert_eq!(error.kind(), ErrorKind::BadModel);
    }
}

#[test]
fn hostile_templates_end_in_an_error() {
    let corpus = [
        // Loops without end.
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% include 'chat template' %}",
        // Ranges and repetitions.
        "{{ range(1000000000000) | list }}",
        "{{ ('a' * 10000000000) }}",
        "{{ ([1] * 10000000000) | list }}",
        "{{ 10 ** 10 ** 10 ** 10 }}",
        // Strings that double.
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x | replace('a', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] | join(ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x.join([ns.x, ns.x]) %}{% endfor %}",
        // Padding.
        "{{ ('a\n' * 10000) | indent(1000000000) }}",
        "{{ '{:>999999999}'.format('a') }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ [[1]] | tojson(indent=1000000000) }}",
        // One list many times over.
        "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        // Too much output.
        "{% for i in range(100000) %}{{ 'a' * 100 }}{% endfor %}",
    ];
    for source in corpus {
        let error = fails(source);
        assert_eq!(error.kind(), ErrorKind::Internal, "it fails on any chat: {source}: {error}");
    }
}

#[test]
fn values_as_deep_as_fuel_allows_do_not_overflow_the_stack() {
    let nest = "{% set ns = namespace(x=0) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}";
    fails(nest);
    for (depth, tail) in
        [(20_000, "{{ ns.x }}"), (20_000, "{{ ns.x | tojson }}"), (20_000, "{{ (ns.x ~ '') | length }}")]
    {
        let source = nest.replace("100000", &depth.to_string()) + tail;
        let template = ChatTemplate::new(&source, "", "").expect("compiles");
        let outcome = template.render(&chat(), true);
        assert!(outcome.as_ref().map_or_else(|e| e.kind() == ErrorKind::Internal, |text| !text.is_empty()), "{tail}");
    }
    let deep_source = format!("{{{{ {}1 }}}}", "not ".repeat(50_000));
    let template = ChatTemplate::new(&deep_source, "", "").expect("the parser has room");
    assert_eq!(template.render(&[], true).as_deref(), Ok("True"));
}

#[test]
fn output_is_capped_while_it_is_written() {
    let template = ChatTemplate::new("{% for m in messages %}{{ m.content }}{% endfor %}", "", "").expect("compiles");
    let template = template.with_output_bytes_max(20);
    assert_eq!(template.render(&chat()[..1], true).as_deref(), Ok("Be brief."));
    let error = template.render(&chat(), true).and_then(|_| template.render(&[message("user", &"x".repeat(21))], true));
    assert_eq!(
        error.map_err(|e| e.message().to_owned()),
        Err("`messages` must become at most 20 bytes of prompt in the chat template, got more".to_owned())
    );
}

#[test]
fn long_chats_get_the_fuel_they_need() {
    let messages: Vec<ChatMessage> =
        (0..2_000).map(|i| message("user", &format!("message {i} ").repeat(100))).collect();
    let prompt = render(CHATML, &messages);
    assert!(prompt.len() > 2_000 * 1_000);
}
