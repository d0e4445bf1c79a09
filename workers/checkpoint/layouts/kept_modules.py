"""Names of modules that are not compressed, in the words of the libraries that read files.

Some take plain names, some patterns that they match from the start of a name, one only what is compressed.
"""

import re
from collections.abc import Iterable, Sequence


def patterns(kept: Sequence[str], compressed: Iterable[str]) -> list[str]:
    """compressed-tensors' words: names as they are, or regular expressions behind `re:` for names with numbers.

    A number becomes `\\d+` where that names no compressed module: a model may have tens of thousands of experts.
    """
    hits = {_any_number(name) for name in compressed}
    found = {name for name in kept if not _has_number(name)}
    for name in inside_layers(kept):
        pattern = _any_number(name) if _any_number(name) not in hits else re.escape(name)
        # $: readers match from the start only, and `gate` begins `gate_proj`
        found.add(f"re:{pattern}$")
    return sorted(found)


def bare(named: Iterable[str]) -> list[str]:
    """`patterns` for readers that take every name as a regular expression anyway."""
    return [name.removeprefix("re:") for name in named]


def inside_layers(names: Iterable[str]) -> list[str]:
    """Those with a number in them."""
    return [name for name in names if _has_number(name)]


def endings(compressed: Sequence[str], kept: Sequence[str]) -> list[str]:
    """Ends of names that all compressed modules have and no kept one: what follows the layer's number, or whole names
    where that does not tell them apart.
    """
    found = set()
    for name in compressed:
        ending = _after_first_number(name)
        found.add(name if any(one.endswith(ending) for one in kept) else ending)
    return sorted(found)


def _has_number(name: str) -> bool:
    return any(map(str.isdigit, name.split(".")))


def _any_number(name: str) -> str:
    return r"\.".join(r"\d+" if part.isdigit() else re.escape(part) for part in name.split("."))


def _after_first_number(name: str) -> str:
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[0] + 1 :]) if numbers else name
