"""Anthropic's own client against a server: python3 anthropic_client.py URL MODEL. Prints `ok NAME` per check."""

import sys

import anthropic

url, model = sys.argv[1:]
client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
# The newest client has no parameter for it any more; older ones send it like this.
GREEDY = {"extra_body": {"temperature": 0}}
ask = [{"role": "user", "content": "What is the capital of France?"}]
TOOL = {
    "name": "find_city",
    "description": "Finds a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def a_message_and_its_stream():
    message = client.messages.create(model=model, max_tokens=12, messages=ask, system="Be brief.", **GREEDY)
    with client.messages.stream(model=model, max_tokens=12, messages=ask, system="Be brief.", **GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert [b.text for b in message.content if b.type == "text"] == ([text] if text else []), (message, text)
    assert final.stop_reason == message.stop_reason and final.usage.output_tokens == message.usage.output_tokens
    assert message.type == "message" and message.role == "assistant"


def a_forced_tool_is_used():
    message = client.messages.create(
        model=model, max_tokens=300, messages=ask, tools=[TOOL], tool_choice={"type": "any"}, **GREEDY
    )
    if message.stop_reason == "max_tokens":
        return
    uses = [b for b in message.content if b.type == "tool_use"]
    assert message.stop_reason == "tool_use" and uses, message
    assert all(use.name == "find_city" and set(use.input) == {"city"} for use in uses), uses
    turn = [*ask, {"role": "assistant", "content": [u.model_dump(include={"type", "id", "name", "input"}) for u in uses]}]
    turn.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": u.id, "content": "Paris"} for u in uses]})
    assert client.messages.create(model=model, max_tokens=5, messages=turn, tools=[TOOL]).usage.output_tokens > 0


def tokens_are_counted():
    count = client.messages.count_tokens(model=model, messages=ask).input_tokens
    usage = client.messages.create(model=model, max_tokens=1, messages=ask).usage
    assert count == usage.input_tokens + usage.cache_read_input_tokens, (count, usage)


def errors_have_their_classes():
    for kind, asked in [
        (anthropic.BadRequestError, {"model": model, "max_tokens": 0}),
        (anthropic.NotFoundError, {"model": "no such", "max_tokens": 5}),
    ]:
        try:
            client.messages.create(messages=ask, **asked)
        except kind as e:
            assert e.body["type"] == "error" and e.body["error"]["message"], e.body
        else:
            raise AssertionError(f"no {kind}")


def the_model_is_listed():
    assert [m.id for m in client.models.list()] == [model]


for check in [
    a_message_and_its_stream, a_forced_tool_is_used, tokens_are_counted, errors_have_their_classes, the_model_is_listed
]:
    check()
    print("ok", check.__name__, flush=True)
