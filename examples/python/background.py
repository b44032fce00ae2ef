"""Submits prompts tonight and collects the answers tomorrow, at the price of a batch:

    pip install openai
    autobatcher run --journal jobs.db -- python3 examples/python/background.py submit
    autobatcher run --journal jobs.db -- python3 examples/python/background.py collect

The script uses OpenAI's background responses and knows nothing of autobatcher. With
"autobatcher serve --journal jobs.db" instead of "run", one proxy serves both commands.
"""

import asyncio
import json
import sys
from pathlib import Path

from openai import AsyncOpenAI

client = AsyncOpenAI()  # autobatcher run sets OPENAI_BASE_URL and OPENAI_API_KEY
questions = [f"What is the square of {number}?" for number in range(20)]
saved = Path("background-ids.json")


async def submit() -> None:
    calls = (client.responses.create(model="gpt-4o-mini", input=question, background=True) for question in questions)
    responses = await asyncio.gather(*calls)
    saved.write_text(json.dumps([response.id for response in responses]))
    print(len(responses), "calls submitted")


async def answer(id: str) -> str:
    response = await client.responses.retrieve(id)
    while response.status in ("queued", "in_progress"):
        await asyncio.sleep(5)
        response = await client.responses.retrieve(id)
    return response.output_text if response.status == "completed" else f"{response.status}: {response.error}"


async def collect() -> None:
    answers = await asyncio.gather(*(answer(id) for id in json.loads(saved.read_text())))
    print(len(answers), "answers, the first:", answers[0])


asyncio.run({"submit": submit, "collect": collect}[sys.argv[1]]())
