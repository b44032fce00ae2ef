"""Tests that Python clients get the same objects in each lane of `autobatcher serve --sandbox`.

Each client makes each call in real time, in a batch, late (after status 200 and
heartbeats), at the flex tier, late at the flex tier, and in the background. The whole
objects must be equal, but for the members of MAY_DIFFER. run.sh starts the proxies.

In the background, a client submits the call and collects the answer

- with calls of its own, where the client has these for responses: openai-python
  (background=True, responses.retrieve), Pydantic AI (openai_background) and LiteLLM
  (aresponses(background=True), aget_responses);
- with LangChain's own argument (background) and the SDK's client that ChatOpenAI holds
  (root_async_client.responses.retrieve). LangChain's own function that makes a message of a
  response is private;
- with RespondAsync, an HTTP transport below the client, for all endpoints. The Agents SDK and
  LlamaIndex have no other way: both can ask for a background response, but have no call that
  collects one, and neither do they show their SDK's client. LiteLLM's functions for responses
  take no HTTP client.

Streams are held, also with background=True.
"""

import asyncio
import dataclasses
import functools
import operator
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise the import downloads a list of prices

import agents
import httpx
import litellm
import openai
import pytest
from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
from agents.models.openai_responses import OpenAIResponsesModel
from langchain_openai import ChatOpenAI
from langchain_openai.chat_models.base import _construct_lc_result_from_responses_api
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai import OpenAI as LlamaIndexOpenAI, OpenAIResponses as LlamaIndexResponses
from pydantic_ai import Agent as PydanticAgent, ModelMessagesTypeAdapter
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel as PydanticResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

agents.set_tracing_disabled(True)
litellm.suppress_debug_info = True

MODEL = "gpt-4o-mini"
KEY = os.environ["OPENAI_API_KEY"]
REALTIME = {"Autobatcher-Mode": "realtime"}
BATCH, LATE, FLEX, FLEX_LATE = (
    os.environ[name] for name in ("OPENAI_BASE_URL", "LATE_BASE_URL", "FLEX_BASE_URL", "FLEX_LATE_BASE_URL")
)
LANES = {"batch": BATCH, "late": LATE, "flex": FLEX, "flex, late": FLEX_LATE}

MAY_DIFFER = {
    "service_tier",  # the tier that was paid for
    "background",  # a response at the flex tier runs in the background
    "created",  # times
    "created_at",
    "completed_at",
    "request_id",  # of the HTTP response
    "input_token_details",  # LangChain names these after the tier
    "output_token_details",
    "run_id",  # Pydantic AI's and LangChain's own
    "conversation_id",
    "timestamp",  # Pydantic AI's own, of the request
    "_response_ms",  # LiteLLM's own
}
# The ids of answers begin so. The ids of tool calls must be equal.
ANSWER_IDS = ("chatcmpl-", "cmpl-", "resp_", "msg_", "run-", "lc_run-")
# The sandbox counts the bytes of the whole body, and lanes differ in "stream" and
# "service_tier". These counts must be there, and be more than zero.
COUNTS = {"prompt_tokens", "input_tokens", "total_tokens", "cost"}

PROMPTS = {"text": "Hello there", "tools": 'sandbox: call get_weather {"city":"Oslo"}'}
# strict: otherwise the SDK in Python streams no tool calls.
WEATHER = {"strict": True, "name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


def messages(prompt):
    return [{"role": "user", "content": prompt}]


def same(value):
    """Return value without the members that may differ between lanes."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    elif dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: float(v) > 0 if k in COUNTS and v is not None else same(v) for k, v in value.items() if k not in MAY_DIFFER}
    if isinstance(value, (list, tuple)):
        return [same(v) for v in value]
    if isinstance(value, str) and value.startswith(ANSWER_IDS):
        return "an id"
    return value


class RespondAsync(httpx.AsyncHTTPTransport):
    """Makes each call in the background, and asks for the answer until it is there."""

    async def handle_async_request(self, request):
        request.headers["Prefer"] = "respond-async"
        response = await super().handle_async_request(request)
        assert response.status_code == 202, "the call was not made in the background"
        headers = {name: request.headers[name] for name in ("Host", "Authorization")}
        question = httpx.Request("GET", request.url.join(response.headers["Location"]), headers=headers)
        while response.status_code == 202:
            await response.aread()
            await asyncio.sleep(0.1)
            response = await super().handle_async_request(question)
        return response


def client(base, headers, http=None):
    return openai.AsyncOpenAI(base_url=base, default_headers=headers, http_client=http)


async def chat(c, prompt):
    return await c.chat.completions.create(
        model=MODEL, messages=messages(prompt), tools=[{"type": "function", "function": WEATHER}]
    )


async def chat_stream(c, prompt):
    async with c.chat.completions.stream(
        model=MODEL, messages=messages(prompt), tools=[{"type": "function", "function": WEATHER}], stream_options={"include_usage": True}
    ) as s:
        return await s.get_final_completion()


async def chat_object(c, prompt):
    return await c.chat.completions.create(model=MODEL, messages=messages(prompt), n=2, response_format={"type": "json_object"})


METADATA = {"job": "nightly"}


async def response(c, prompt):
    return await c.responses.create(model=MODEL, input=prompt, metadata=METADATA)


async def response_stream(c, prompt):
    async with c.responses.stream(model=MODEL, input=prompt, metadata=METADATA) as s:
        arguments = [e.delta async for e in s if e.type == "response.function_call_arguments.delta"]
        return [await s.get_final_response(), "".join(arguments)]


async def background(c, prompt):
    return await collected(c, (await c.responses.create(model=MODEL, input=prompt, metadata=METADATA, background=True)).id)


async def collected(c, response_id):
    while True:
        answer = await c.responses.retrieve(response_id)
        if answer.status not in ("queued", "in_progress"):
            return answer
        await asyncio.sleep(0.1)


async def completion(c, prompt):
    return await c.completions.create(model=MODEL, prompt=prompt)


async def embeddings(c, prompt):
    return await c.embeddings.create(model=MODEL, input=[prompt, "two"], dimensions=16)


async def moderation(c, prompt):
    return await c.moderations.create(input=[prompt, "violence"])


async def images(c, prompt):
    return await c.images.generate(model="gpt-image-1", prompt=prompt, n=2)


def sdk(call):
    async def ask(base, headers, prompt, http=None):
        async with client(base, headers, http) as c:
            return await call(c, prompt)

    return ask


def langchain(use_responses_api, stream=False):
    async def ask(base, headers, prompt, http=None):
        llm = ChatOpenAI(
            model=MODEL, base_url=base, default_headers=headers, use_responses_api=use_responses_api, http_async_client=http
        )
        llm = llm.bind_tools([{"type": "function", "function": WEATHER}])
        if not stream:
            return await llm.ainvoke(prompt)
        return functools.reduce(operator.add, [chunk async for chunk in llm.astream(prompt)])

    return ask


async def langchain_background(base, headers, prompt):
    llm = ChatOpenAI(model=MODEL, base_url=base, default_headers=headers, use_responses_api=True)
    asking = llm.bind_tools([{"type": "function", "function": WEATHER}]).bind(background=True)
    first = await asking.ainvoke(prompt)
    assert first.response_metadata["status"] == "queued"
    answer = await collected(llm.root_async_client, first.id)
    return _construct_lc_result_from_responses_api(answer).generations[0].message


def openai_agents(model_class):
    async def ask(base, headers, prompt, http=None):
        async with client(base, headers, http) as c:
            agent = agents.Agent(name="echo", model=model_class(model=MODEL, openai_client=c))
            return (await agents.Runner.run(agent, prompt)).raw_responses

    return ask


def pydantic_ai(model_class, **settings):
    async def ask(base, headers, prompt, http=None):
        async with client(base, headers, http) as c:
            model = model_class(MODEL, provider=OpenAIProvider(openai_client=c))
            run = await PydanticAgent(model).run(prompt, model_settings=settings)
            answers = ModelMessagesTypeAdapter.dump_python(run.all_messages(), mode="json")
            for answer in answers:
                answer.pop("provider_url", None)  # the address of the proxy
            return answers

    return ask


async def litellm_chat(base, headers, prompt, http=None):
    sdk_client = http and client(base, headers, http)
    answer = await litellm.acompletion(
        model="openai/" + MODEL, api_base=base, api_key=KEY, messages=messages(prompt), extra_headers=headers, client=sdk_client
    )
    return answer


def litellm_responses(background):
    async def ask(base, headers, prompt):
        to = {"api_base": base, "api_key": KEY, "extra_headers": headers}
        answer = await litellm.aresponses(model="openai/" + MODEL, input=prompt, background=background, **to)
        first = answer.status
        while answer.status in ("queued", "in_progress"):
            await asyncio.sleep(0.1)
            answer = await litellm.aget_responses(answer.id, **to)
        assert background is None or first == "queued"
        return answer

    return ask


def llama_index(llm_class):
    async def ask(base, headers, prompt, http=None):
        llm = llm_class(model=MODEL, api_base=base, api_key=KEY, default_headers=headers, async_http_client=http)
        answer = await llm.achat([ChatMessage(role="user", content=prompt)])
        return [answer.message, answer.raw]

    return ask


CALLS = {
    "openai chat": sdk(chat),
    "openai chat stream": sdk(chat_stream),
    "openai chat, JSON": sdk(chat_object),
    "openai response": sdk(response),
    "openai response stream": sdk(response_stream),
    "openai completion": sdk(completion),
    "openai embeddings": sdk(embeddings),
    "openai moderation": sdk(moderation),
    "openai images": sdk(images),
    "langchain chat": langchain(False),
    "langchain chat stream": langchain(False, stream=True),
    "langchain responses": langchain(True),
    "langchain responses stream": langchain(True, stream=True),
    "agents chat": openai_agents(OpenAIChatCompletionsModel),
    "agents responses": openai_agents(OpenAIResponsesModel),
    "pydantic-ai chat": pydantic_ai(OpenAIChatModel),
    "pydantic-ai responses": pydantic_ai(PydanticResponsesModel),
    "litellm": litellm_chat,
    "litellm responses": litellm_responses(None),
    "llama-index chat": llama_index(LlamaIndexOpenAI),
    "llama-index responses": llama_index(LlamaIndexResponses),
}
IN_BACKGROUND = {
    "openai response": sdk(background),
    "langchain responses": langchain_background,
    "pydantic-ai responses": pydantic_ai(PydanticResponsesModel, openai_background=True),
    "litellm responses": litellm_responses(True),
}
HELD = {name for name in CALLS if name.endswith(" stream")} | {"litellm responses"}  # not called with RespondAsync
NO_FLEX = {"openai completion", "openai embeddings", "openai moderation", "openai images"}  # no provider has these at the flex tier
TOOLS = {f"{name}{stream}" for name in ("openai chat", "openai response", "langchain chat", "langchain responses") for stream in ("", " stream")}


@pytest.mark.parametrize("name", CALLS)
def test_the_same_objects_in_each_lane(name):
    async def ask_all(prompt):
        calls = {"realtime": CALLS[name](BATCH, REALTIME, prompt)}
        calls |= {lane: CALLS[name](base, None, prompt) for lane, base in LANES.items() if "flex" not in lane or name not in NO_FLEX}
        if name in IN_BACKGROUND:
            calls["background"] = IN_BACKGROUND[name](BATCH, None, prompt)
        if name not in HELD:
            http = httpx.AsyncClient(transport=RespondAsync())
            calls["respond-async"] = CALLS[name](BATCH, None, prompt, http)
        return dict(zip(calls, map(same, await asyncio.gather(*calls.values()))))

    for kind in ["text", "tools"] if name in TOOLS else ["text"]:
        objects = asyncio.run(ask_all(PROMPTS[kind]))
        want = objects.pop("realtime")
        assert want and (kind == "text" or "Oslo" in str(want)), f"there is nothing to compare: {want}"
        for lane, got in objects.items():
            assert got == want, f"{name}, {kind}, {lane}"


async def langchain_asks(base):
    answer = await ChatOpenAI(model=MODEL, base_url=base, use_responses_api=True, model_kwargs={"background": True}).ainvoke("hello")
    return answer.text, answer.id


async def agents_ask(base):
    async with client(base, None) as c:
        settings = agents.ModelSettings(extra_args={"background": True})
        agent = agents.Agent(name="echo", model=OpenAIResponsesModel(model=MODEL, openai_client=c), model_settings=settings)
        run = await agents.Runner.run(agent, "hello")
        return run.final_output, run.raw_responses[0].response_id


async def llama_index_asks(base):
    llm = LlamaIndexResponses(model=MODEL, api_base=base, api_key=KEY, additional_kwargs={"background": True})
    answer = await llm.achat([ChatMessage(role="user", content="hello")])
    return answer.message.content or "", answer.raw.id


@pytest.mark.parametrize("ask", [langchain_asks, agents_ask, llama_index_asks])
def test_frameworks_that_do_not_wait(ask):
    """docs/lanes.md warns: these frameworks take the response that is queued for the answer."""

    async def both():
        text, response_id = await ask(BATCH)
        async with client(BATCH, None) as c:
            return text, (await collected(c, response_id)).output_text

    assert asyncio.run(both()) == ("", "You said: hello")
