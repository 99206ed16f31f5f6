"""What clients do that find the server full: python3 retries.py URL MODEL, of a server whose queue holds one request.

Both try again by themselves, when they were told to. Nothing here is timed: how often they asked and what they waited is
heard from the clients."""

import sys
import time
from unittest import mock

import anthropic
import httpx2
import openai

url, model = sys.argv[1:]
plain = httpx2.Client(base_url=url, trust_env=False)
ask = [{"role": "user", "content": "Hello."}]


def begin():
    asked = {"prompt": "x", "max_tokens": 1500, "ignore_eos": True, "on_disconnect": "detach"}
    return plain.post("/v1/streams", json=asked).raise_for_status().headers["location"]


def fill():
    """One stream that runs for sure, and one that waits for it."""
    running = begin()
    with plain.stream("GET", running) as events:
        assert "event: token" in events.iter_lines()
    return [running, begin()]


def waits_as_told(client_class, http_class, base_url, call):
    """Refused once, and let in when it comes back: the first refusal makes the room."""
    streams, answers, slept, sleep = fill(), [], [], time.sleep

    def hear(response):
        answers.append((response.status_code, response.headers.get("retry-after-ms")))
        if response.status_code == 429:
            for stream in streams:
                plain.delete(stream).raise_for_status()

    def wait(seconds):
        slept.append(seconds)
        sleep(seconds)

    http = http_class(event_hooks={"response": [hear]}, trust_env=False)
    with mock.patch("time.sleep", wait):
        call(client_class(base_url=base_url, api_key="none", http_client=http))
    assert [status for status, _ in answers] == [429, 200], answers
    assert slept == [float(answers[0][1]) / 1000], (slept, answers)


def openai_waits_as_told():
    def call(client):
        answer = client.chat.completions.create(model=model, messages=ask, max_tokens=2)
        assert answer.usage.completion_tokens > 0, answer

    waits_as_told(openai.OpenAI, openai.DefaultHttpxClient, f"{url}/v1", call)


def anthropic_waits_as_told():
    def call(client):
        answer = client.messages.create(model=model, messages=ask, max_tokens=2)
        assert answer.usage.output_tokens > 0, answer

    waits_as_told(anthropic.Anthropic, anthropic.DefaultHttpxClient, url, call)


for check in [openai_waits_as_told, anthropic_waits_as_told]:
    check()
    print("ok", check.__name__, flush=True)
