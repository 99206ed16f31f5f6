"""OpenAI's own client against a server: python3 openai_client.py URL MODEL. Prints `ok NAME` per check; fails loudly."""

import json
import struct
import sys

import openai

url, model = sys.argv[1:]
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
ask = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "find_city", "description": "Finds a city.", "parameters": SCHEMA},
}


def chat_streams_as_it_answers():
    asked = {"model": model, "messages": ask, "max_tokens": 12, "seed": 3}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content, (text, whole)
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert {c.id for c in chunks} == {chunks[0].id} and whole.object == "chat.completion"


def choices_are_the_seeds_that_follow():
    asked = {"model": model, "messages": ask, "max_tokens": 8}
    alone = [client.chat.completions.create(**asked, seed=seed).choices[0].message.content for seed in range(5, 8)]
    answer = client.chat.completions.create(**asked, seed=5, n=3)
    assert [c.message.content for c in answer.choices] == alone, (answer, alone)
    streamed = [""] * 3
    for chunk in client.chat.completions.create(**asked, seed=5, n=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == alone, (streamed, alone)


def a_required_call_is_valid():
    asked = {"model": model, "messages": ask, "tools": [TOOL], "tool_choice": "required", "seed": 1, "max_tokens": 400}
    choice = client.chat.completions.create(**asked).choices[0]
    if choice.finish_reason == "length":
        return
    assert choice.finish_reason == "tool_calls", choice
    for call in choice.message.tool_calls:
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "find_city" and set(arguments) == {"city", "people"}, call
    parts = {}
    for chunk in client.chat.completions.create(**asked, stream=True):
        for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            name, text = parts.get(call.index, ("", ""))
            parts[call.index] = (name + (call.function.name or ""), text + (call.function.arguments or ""))
    whole = [(c.function.name, c.function.arguments) for c in choice.message.tool_calls]
    assert list(parts.values()) == whole, (parts, whole)


def structured_output_is_the_schema():
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
    choice = client.chat.completions.create(
        model=model, messages=ask, response_format=form, max_tokens=200, seed=2
    ).choices[0]
    assert choice.finish_reason == "length" or set(json.loads(choice.message.content)) == {"city", "people"}, choice


def completions_measure_prompts():
    answer = client.completions.create(model=model, prompt=["one two", "three"], echo=True, logprobs=1, max_tokens=1)
    assert len(answer.choices) == 2
    for choice in answer.choices:
        logprobs = choice.logprobs
        assert logprobs.token_logprobs[0] is None and all(p <= 0 for p in logprobs.token_logprobs[1:]), logprobs
        assert len(logprobs.tokens) == len(logprobs.text_offset) == len(logprobs.top_logprobs)
    pieces = client.completions.create(model=model, prompt="one", max_tokens=5, stream=True)
    assert "".join(c.choices[0].text for c in pieces if c.choices) is not None


def leaving_a_stream_cancels_it():
    stream = client.chat.completions.create(
        model=model, messages=ask, max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
    )
    stream_id = stream.response.headers["x-stream-id"]
    next(iter(stream))
    stream.close()
    native = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    events = native.get(f"/v1/streams/{stream_id}", cast_to=str)
    assert "event: error" in events and "cancelled" in events, events[-400:]


def responses_are_kept_and_gone_on_from():
    first = client.responses.create(model=model, input="Hello.", max_output_tokens=8, instructions="Be brief.")
    assert client.responses.retrieve(first.id).output_text == first.output_text
    second = client.responses.create(model=model, input="And?", previous_response_id=first.id, max_output_tokens=8)
    assert second.previous_response_id == first.id
    assert len(client.responses.input_items.list(second.id).data) >= 2
    events = list(client.responses.create(model=model, input="Hello.", max_output_tokens=8, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type in ("response.completed", "response.incomplete")
    slow = client.responses.create(model=model, input="Hello.", max_output_tokens=8, background=True, stream=True)
    seen = [next(slow), next(slow)]
    slow.close()
    rest = client.responses.retrieve(seen[0].response.id, stream=True, starting_after=1)
    numbers = [e.sequence_number for e in rest]
    assert numbers == list(range(2, 2 + len(numbers))) and numbers, numbers
    client.responses.delete(first.id)
    try:
        client.responses.retrieve(first.id)
        raise AssertionError("it was deleted")
    except openai.NotFoundError:
        pass


def errors_have_their_classes():
    cases = [
        (openai.BadRequestError, lambda: client.chat.completions.create(model=model, messages=ask, temperature=9)),
        (openai.NotFoundError, lambda: client.chat.completions.create(model="no such", messages=ask)),
        (openai.NotFoundError, lambda: client.models.retrieve("no such")),
        (openai.BadRequestError, lambda: client.completions.create(model=model, prompt="x", suffix="y")),
    ]
    for kind, call in cases:
        try:
            call()
        except kind as e:
            assert e.body["message"] and "type" in e.body and "code" in e.body, e.body
        else:
            raise AssertionError(f"no {kind}")


def the_model_is_listed():
    assert [m.id for m in client.models.list()] == [model] and client.models.retrieve(model).object == "model"


def embeddings_are_vectors_of_length_1():
    # The client asks for base64 by itself, and reads it.
    both = client.embeddings.create(model=model, input=["A man is eating food.", "Hello."])
    assert [e.index for e in both.data] == [0, 1] and both.usage.total_tokens == both.usage.prompt_tokens > 0
    for e in both.data:
        assert abs(sum(x * x for x in e.embedding) - 1) < 1e-4, e
    alone = client.embeddings.create(model=model, input="Hello.", encoding_format="float").data[0].embedding
    # Base64 holds the very bits; JSON's digits read as doubles are the same only as floats.
    assert struct.pack(f"{len(alone)}f", *alone) == struct.pack(f"{len(alone)}f", *both.data[1].embedding)


for check in [
    chat_streams_as_it_answers, choices_are_the_seeds_that_follow, a_required_call_is_valid,
    structured_output_is_the_schema, completions_measure_prompts, leaving_a_stream_cancels_it,
    responses_are_kept_and_gone_on_from, errors_have_their_classes, the_model_is_listed,
    embeddings_are_vectors_of_length_1,
]:
    check()
    print("ok", check.__name__, flush=True)
