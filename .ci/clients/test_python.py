"""Tests of the official Python package with `autobatcher serve --sandbox`.

run.sh starts the proxy and sets OPENAI_BASE_URL, OPENAI_API_KEY and
AUTOBATCHER_EVENTS, the file with the lifecycle events of the proxy. run.sh runs the
tests a second time with LATE=1 at a proxy whose answers all come after status 200.
"""

import asyncio
import json
import os

import openai
import pytest

MODEL = "gpt-4o-mini"
LATE = os.environ.get("LATE") == "1"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


@pytest.fixture
def client():
    with openai.OpenAI() as client:
        yield client


def user_message(text):
    return [{"role": "user", "content": text}]


def events(name):
    with open(os.environ["AUTOBATCHER_EVENTS"], encoding="utf-8") as lines:
        complete = lines.read().split("\n")[:-1]  # the last line may be incomplete
    return [e for e in map(json.loads, complete) if e["event"] == name]


def test_chat(client):
    answer = client.chat.completions.create(model=MODEL, messages=user_message("Hello there"))
    assert answer.choices[0].message.content == "You said: Hello there"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens > 0


def test_chat_response_headers(client):
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=user_message("Hello"))
    assert raw.headers["autobatcher-custom-id"]
    if LATE:  # the id of the request comes as a trailer, which the client does not read
        assert "x-request-id" not in raw.headers
    else:
        assert raw.headers["autobatcher-batch-id"].startswith("batch_")
        assert raw.headers["x-request-id"]
    assert raw.parse().choices[0].message.content == "You said: Hello"


def test_embeddings(client):
    answer = client.embeddings.create(model=MODEL, input=["one", "two"], dimensions=16)
    assert [e.index for e in answer.data] == [0, 1]
    assert len(answer.data[0].embedding) == 16
    assert all(isinstance(x, float) for x in answer.data[0].embedding)  # the client requests base64 and decodes it
    assert answer.data[0].embedding != answer.data[1].embedding


def test_responses(client):
    answer = client.responses.create(model=MODEL, input="Hello there")
    assert answer.status == "completed"
    assert answer.output_text == "You said: Hello there"


def test_completions(client):
    answer = client.completions.create(model=MODEL, prompt="Hello there")
    assert answer.choices[0].text == "You said: Hello there"


def test_completions_stream(client):
    chunks = list(client.completions.create(model=MODEL, prompt="Hello", stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "You said: Hello"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage.total_tokens > 0


def test_moderations_without_model(client):
    answer = client.moderations.create(input=["peace", "violence"])
    assert [result.flagged for result in answer.results] == [False, True]


def test_images(client):
    answer = client.images.generate(model="gpt-image-1", prompt="A cat", n=2)
    assert len(answer.data) == 2 and all(image.b64_json for image in answer.data)


def test_chat_stream(client):
    stream = client.chat.completions.create(
        model=MODEL, messages=user_message("Hello there"), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "You said: Hello there"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert [c.usage.total_tokens > 0 for c in chunks if c.usage] == [True]


def test_chat_stream_without_usage(client):
    chunks = list(client.chat.completions.create(model=MODEL, messages=user_message("Hello"), stream=True))
    assert not any(c.usage for c in chunks)


def test_chat_stream_helper(client):
    with client.chat.completions.stream(model=MODEL, messages=user_message("Hello there")) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == "You said: Hello there"


def test_responses_stream(client):
    stream = list(client.responses.create(model=MODEL, input="Hello there", stream=True))
    assert stream[0].type == "response.created"
    assert stream[-1].type == "response.completed"
    assert [e.sequence_number for e in stream] == list(range(len(stream)))
    assert "".join(e.delta for e in stream if e.type == "response.output_text.delta") == "You said: Hello there"


def test_responses_stream_helper(client):
    with client.responses.stream(model=MODEL, input="Hello there") as stream:
        assert stream.get_final_response().output_text == "You said: Hello there"


def test_structured_output(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=user_message("Hello there"), response_format={"type": "json_object"}
    )
    assert json.loads(answer.choices[0].message.content) == {"echo": "Hello there"}


TOOL_PROMPT = 'sandbox: call get_weather {"city":"Oslo"}'


def test_tool_call(client):
    answer = client.chat.completions.create(model=MODEL, messages=user_message(TOOL_PROMPT), tools=TOOLS)
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Oslo"}


def test_tool_call_stream(client):
    with client.chat.completions.stream(model=MODEL, messages=user_message(TOOL_PROMPT), tools=TOOLS) as stream:
        answer = stream.get_final_completion()
    (call,) = answer.choices[0].message.tool_calls
    assert (call.id, call.function.name) == ("call_sandbox", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Oslo"}


def test_tool_call_responses_stream(client):
    with client.responses.stream(model=MODEL, input=TOOL_PROMPT) as stream:
        (call,) = stream.get_final_response().output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "get_weather", {"city": "Oslo"})


@pytest.mark.parametrize(
    "status, error",
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (404, openai.NotFoundError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_line_with_error_status(client, status, error, stream):
    passing = status in (429, 500)  # the proxy resubmits such a line once, and the client may retry
    prompt = f"sandbox: status {status} {'streamed' if stream else ''}"
    before = len(events("batch_submitted"))
    with client.with_options(max_retries=0) if passing else client as client, pytest.raises(openai.APIError) as caught:
        answer = client.chat.completions.create(model=MODEL, messages=user_message(prompt), stream=stream)
        for _ in answer if stream else []:
            pass
    if LATE and stream:
        assert type(caught.value) is openai.APIError and caught.value.message
    elif LATE and passing:
        assert type(caught.value) is openai.APIConnectionError  # the body broke off, and there is no retry
    else:  # late: the client retries the broken answer, and the retry gets the kept failure
        assert isinstance(caught.value, error) and caught.value.status_code == status
        assert caught.value.body["message"]
    assert len(events("batch_submitted")) == before + (2 if passing else 1), "a retry was paid for"


def test_line_without_response(client):
    with pytest.raises(openai.APIStatusError) as caught:  # late: from the retry
        client.embeddings.create(model=MODEL, input="sandbox: error request_timeout")
    assert caught.value.status_code == 424


def test_invalid_calls(client):
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="", messages=user_message("Hello"))
    with openai.OpenAI(api_key="sk-wrong") as wrong_key, pytest.raises(openai.AuthenticationError):
        wrong_key.chat.completions.create(model=MODEL, messages=user_message("Hello"))
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve("file-nowhere")


def test_pass_through(client):
    assert list(client.models.list()) == []


def test_heartbeats_beyond_the_timeout(client):
    """The response comes after 3 s, to a client with a read timeout of 2 s."""
    short_timeout = client.with_options(timeout=2, max_retries=0)
    answer = short_timeout.chat.completions.create(model=MODEL, messages=user_message("sandbox: delay 3s"))
    assert answer.choices[0].message.content.startswith("You said")
    stream = short_timeout.chat.completions.create(model=MODEL, messages=user_message("sandbox: delay 3.1s"), stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices).startswith("You said")


@pytest.mark.parametrize("stream", [False, True])
def test_failure_after_first_heartbeat(client, stream):
    """Late, the status is 200 already, but the client must report an error."""
    prompt = f"sandbox: delay 3s status 400 {stream}"
    with pytest.raises(openai.APIError) as caught:
        answer = client.with_options(max_retries=0).chat.completions.create(
            model=MODEL, messages=user_message(prompt), stream=stream
        )
        for _ in answer if stream else []:
            pass
    if not LATE:  # the proxy answers within 10 s
        assert caught.value.status_code == 400
    else:
        assert type(caught.value) is (openai.APIError if stream else openai.APIConnectionError)


def test_fifty_concurrent_calls_share_batches():
    before = len(events("batch_submitted"))

    async def ask_all():
        async with openai.AsyncOpenAI() as client:
            calls = [client.chat.completions.create(model=MODEL, messages=user_message(f"call {i}")) for i in range(50)]
            return await asyncio.gather(*calls)

    answers = asyncio.run(ask_all())
    assert [a.choices[0].message.content for a in answers] == [f"You said: call {i}" for i in range(50)]
    batches = events("batch_submitted")[before:]
    assert sum(b["request_count"] for b in batches) == 50
    assert len(batches) <= 3
