"""Large answers leave the event loop to others between their parts."""

import asyncio

import msgspec

from app.api.answer import encoded_in_turns


async def test_others_have_a_turn_between_the_parts_of_an_answer() -> None:
    turns: list[int] = []
    parts: list[int] = []

    async def other() -> None:
        while len(parts) < 5:
            turns.append(len(parts))
            await asyncio.sleep(0)

    def part(number: int) -> dict[str, int]:
        parts.append(number)
        return {"index": number}

    _, encoded = await asyncio.gather(other(), encoded_in_turns(part(number) for number in range(5)))

    assert turns == [0, 1, 2, 3, 4]
    assert msgspec.json.decode(msgspec.json.encode(encoded)) == [{"index": number} for number in range(5)]
