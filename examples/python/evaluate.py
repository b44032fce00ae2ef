"""Asks a model 500 questions at once. The script knows nothing of autobatcher:

    pip install openai
    autobatcher run --sandbox -- python3 examples/python/evaluate.py
"""

import asyncio

from openai import AsyncOpenAI

client = AsyncOpenAI()  # autobatcher run sets OPENAI_BASE_URL and OPENAI_API_KEY


async def ask(number: int) -> str:
    completion = await client.chat.completions.create(
        model="gpt-4o-mini",
        max_tokens=100,
        messages=[
            {"role": "system", "content": "You are a careful assistant. Answer with the number only, without units."},
            {"role": "user", "content": f"What is the square of {number}?"},
        ],
    )
    return completion.choices[0].message.content or ""


async def main() -> None:
    answers = await asyncio.gather(*(ask(n) for n in range(500)))
    print(len(answers), "answers, the first:", answers[0])


asyncio.run(main())
