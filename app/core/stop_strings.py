"""Stop strings over a stream of text pieces, wherever the pieces are cut.

The result is the one of looking at the text character by character: the stop string that is complete first wins, of
several that end on the same character the longest. What could still become a stop string is held back.
"""


class StopStrings:
    """The matcher of one choice: `feed` pieces, `flush` at the end."""

    __slots__ = ("_held", "_includes_stop", "_stops", "matched")

    def __init__(self, stops: tuple[str, ...], *, includes_stop: bool = False) -> None:
        self._stops = stops
        self._includes_stop = includes_stop
        self._held = ""
        self.matched: str | None = None

    def feed(self, piece: str) -> str:
        """Text that is now certain to be output. After a match `matched` is set and nothing may be fed any more."""
        if not self._stops:
            return piece
        text = self._held + piece
        match = self._first_match(text)
        if match is not None:
            start, stop = match
            self.matched, self._held = stop, ""
            return text[: start + len(stop)] if self._includes_stop else text[:start]
        keep = self._possible_start(text)
        self._held = text[keep:]
        return text[:keep]

    def flush(self) -> str:
        """What was held back for a stop string that never came."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        ends: list[tuple[int, int, str]] = []
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0:
                ends.append((start + len(stop), start, stop))
        if not ends:
            return None
        _, start, stop = min(ends)
        return start, stop

    def _possible_start(self, text: str) -> int:
        """The first position from which the rest of the text begins one of the stop strings."""
        first = len(text)
        for stop in self._stops:
            position = text.find(stop[0], max(0, len(text) - len(stop) + 1))
            while 0 <= position < first:
                if stop.startswith(text[position:]):
                    first = position
                    break
                position = text.find(stop[0], position + 1)
        return first
