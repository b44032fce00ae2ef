"""Makes calls through the original autobatcher, the Python library, and prints what
one call costs: CPU microseconds (user and system) and KB of memory at the peak."""

import asyncio
import resource
import sys

from autobatcher import BatchOpenAI


def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 1024


async def main(base, calls, size):
    async with BatchOpenAI(
        api_key="sk-compare", base_url=base, batch_size=size, batch_window_seconds=1, poll_interval_seconds=1
    ) as client:

        async def call(i):
            answer = await client.chat.completions.create(
                model="gpt-4.1-mini", messages=[{"role": "user", "content": f"number {i}"}]
            )
            assert f"number {i}" in answer.choices[0].message.content, answer

        await call(calls)  # what the first call loads
        cpu_before, kb_before = cpu(), resident()
        await asyncio.gather(*(call(i) for i in range(calls)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(round((cpu() - cpu_before) / calls * 1e6), round((peak - kb_before) / calls, 1))


asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
