"""Tests of Python frameworks with `autobatcher serve --sandbox`.

Each client makes each kind of call at two proxies: at OPENAI_BASE_URL the answer is
in time, at LATE_BASE_URL the answer comes after status 200 and several heartbeats.
The calls run concurrently, since most of them wait. The tests then check the outcomes.
test_same.py compares the whole objects in all lanes, and in the background.
"""

import asyncio
import itertools
import json
import os
import time
from types import SimpleNamespace

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise the import downloads a list of prices

import agents
import litellm
import openai
import pytest
from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
from agents.models.openai_responses import OpenAIResponsesModel
from langchain_openai import ChatOpenAI
from langchain_openai.chat_models.base import OpenAIInvalidRequestError
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai import OpenAI as LlamaIndexOpenAI
from pydantic_ai import Agent as PydanticAgent, ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel as PydanticResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

MODEL = "gpt-4o-mini"
KEY = os.environ["OPENAI_API_KEY"]
agents.set_tracing_disabled(True)
litellm.suppress_debug_info = True


def messages(prompt):
    return [{"role": "user", "content": prompt}]


async def openai_chat(base, prompt, stream):
    async with openai.AsyncOpenAI(base_url=base) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=messages(prompt), stream=stream)
        if not stream:
            return answer.choices[0].message.content
        return "".join([c.choices[0].delta.content or "" async for c in answer if c.choices])


async def openai_responses(base, prompt, stream):
    async with openai.AsyncOpenAI(base_url=base) as client:
        if not stream:
            return (await client.responses.create(model=MODEL, input=prompt)).output_text
        async with client.responses.stream(model=MODEL, input=prompt) as events:
            return (await events.get_final_response()).output_text


def langchain(use_responses_api):
    async def ask(base, prompt, stream):
        # The answer takes longer than stream_chunk_timeout; heartbeats are faster.
        llm = ChatOpenAI(
            model=MODEL, base_url=base, use_responses_api=use_responses_api, stream_chunk_timeout=CHUNK_TIMEOUT
        )
        if not stream:
            return (await llm.ainvoke(prompt)).text
        return "".join([chunk.text async for chunk in llm.astream(prompt)])

    return ask


def openai_agents(model_class):
    async def ask(base, prompt, stream):
        async with openai.AsyncOpenAI(base_url=base) as client:
            agent = agents.Agent(name="echo", model=model_class(model=MODEL, openai_client=client))
            if not stream:
                return (await agents.Runner.run(agent, prompt)).final_output
            run = agents.Runner.run_streamed(agent, prompt)
            deltas = [
                e.data.delta
                async for e in run.stream_events()
                if e.type == "raw_response_event" and e.data.type == "response.output_text.delta"
            ]
            assert run.final_output == "".join(deltas)
            return run.final_output

    return ask


def pydantic_ai(model_class):
    async def ask(base, prompt, stream):
        async with openai.AsyncOpenAI(base_url=base) as client:
            agent = PydanticAgent(model_class(MODEL, provider=OpenAIProvider(openai_client=client)))
            if not stream:
                return (await agent.run(prompt)).output
            async with agent.run_stream(prompt) as run:
                return "".join([delta async for delta in run.stream_text(delta=True)])

    return ask


async def litellm_chat(base, prompt, stream):
    answer = await litellm.acompletion(
        model="openai/" + MODEL, api_base=base, api_key=KEY, messages=messages(prompt), stream=stream
    )
    if not stream:
        return answer.choices[0].message.content
    return "".join([c.choices[0].delta.content or "" async for c in answer])


async def llama_index(base, prompt, stream):
    llm = LlamaIndexOpenAI(model=MODEL, api_base=base, api_key=KEY)
    message = [ChatMessage(role="user", content=prompt)]
    if not stream:
        return (await llm.achat(message)).message.content
    return "".join([r.delta or "" async for r in await llm.astream_chat(message)])


CLIENTS = {
    "openai chat": openai_chat,
    "openai responses": openai_responses,
    "langchain chat": langchain(False),
    "langchain responses": langchain(True),
    "agents chat": openai_agents(OpenAIChatCompletionsModel),
    "agents responses": openai_agents(OpenAIResponsesModel),
    "pydantic-ai chat": pydantic_ai(OpenAIChatModel),
    "pydantic-ai responses": pydantic_ai(PydanticResponsesModel),
    "litellm chat": litellm_chat,
    "llama-index chat": llama_index,
}
# What a late failure raises: docs/operations.md has the same table. Not streamed, the
# client retries the broken answer, and the retry gets the failure with its status.
LATE_FAILURES = {
    # the first word of the client: (not streamed, streamed), each a class and a status
    "openai": ((openai.BadRequestError, 400), (openai.APIError, None)),
    "langchain": ((OpenAIInvalidRequestError, 400), (openai.APIError, None)),
    "agents": ((openai.BadRequestError, 400), (openai.APIError, None)),
    "pydantic-ai": ((ModelHTTPError, 400), (openai.APIError, None)),
    "litellm": ((litellm.BadRequestError, 400), (litellm.exceptions.MidStreamFallbackError, 500)),
    "llama-index": ((openai.BadRequestError, 400), (openai.APIError, None)),
}
CASES = list(itertools.product(CLIENTS, [False, True], [False, True], [False, True]))
CHUNK_TIMEOUT = 1.0
DELAY = "3s"


async def run(case):
    """Makes a call and returns the prompt, and the answer or the error."""
    client, late, failure, stream = case
    prompt = f"{client} {'streamed' if stream else 'complete'}"
    if failure:
        prompt = "status 400 " + prompt
    if late:
        prompt = f"delay {DELAY} " + prompt
    prompt = "sandbox: " + prompt
    base = os.environ["LATE_BASE_URL" if late else "OPENAI_BASE_URL"]
    outcome = SimpleNamespace(prompt=prompt, text=None, error=None)
    start = time.monotonic()
    try:
        outcome.text = await CLIENTS[client](base, prompt, stream)
    except Exception as error:
        outcome.error = error
    outcome.seconds = time.monotonic() - start
    return outcome


@pytest.fixture(scope="module")
def outcomes():
    async def run_all():
        # First the calls in time: they load the modules that block the event loop.
        return [
            outcome
            for late in [False, True]
            for outcome in await asyncio.gather(*(run(case) for case in CASES if case[1] == late))
        ]

    return dict(zip(sorted(CASES, key=lambda case: case[1]), asyncio.run(run_all())))


def status(error):
    """Returns the HTTP status that the error or its cause names, or None."""
    while error is not None:
        if code := getattr(error, "status_code", None):
            return code
        error = error.__cause__
    return None


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c[0]}-{'late' if c[1] else 'in time'}-{'failure' if c[2] else 'success'}-{'stream' if c[3] else 'complete'}"
)
def test_outcome(outcomes, case):
    client, late, failure, stream = case
    outcome = outcomes[case]
    if not failure:
        assert outcome.error is None
        assert outcome.text == f"You said: {outcome.prompt}"
        return
    assert outcome.error is not None, f"a failure became the answer {outcome.text!r}"
    assert "Bad Request." in str(outcome.error), "the provider's message is lost"
    if not late:
        assert status(outcome.error) == 400
        return
    assert (type(outcome.error), status(outcome.error)) == LATE_FAILURES[client.split()[0]][stream]
