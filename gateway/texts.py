"""Statement texts -> scripts: remembered by their exact text, parsed here when short and in a process of their own when long."""

from __future__ import annotations

from collections import OrderedDict

from gateway.settings import GatewaySettings
from ingest import sql
from ingest.parser_process import ParserProcess
from ingest.sql import Script, Unparsable


class Texts:
    """Shared by all sessions of a gateway. What is remembered depends on the text alone; verdicts are each session's own."""

    def __init__(self, parser: ParserProcess, settings: GatewaySettings) -> None:
        self._parser = parser
        self._settings = settings
        self._scripts: OrderedDict[str, Script | Unparsable] = OrderedDict()
        self._bytes = 0

    def analyze(self, text: str) -> Script | Unparsable | None:
        """None: too long to parse on this loop, use `analyze_elsewhere`."""
        known = self._scripts.get(text)
        if known is not None:
            self._scripts.move_to_end(text)
            return known
        if not sql.parses_inline(text):
            return None
        script = sql.parse(text)
        if len(text) <= self._settings.script_cached_bytes_max:
            self._remember(text, script)
        return script

    async def analyze_elsewhere(self, text: str) -> Script | Unparsable:
        return await self._parser.parse(text)

    def _remember(self, text: str, script: Script | Unparsable) -> None:
        self._scripts[text] = script
        self._bytes += _weight(text)
        while self._bytes > self._settings.scripts_cached_bytes_max:
            evicted, _ = self._scripts.popitem(last=False)
            self._bytes -= _weight(evicted)


def _weight(text: str) -> int:
    """A script takes several times its text; 2 KB is what a short one takes."""
    return 4 * len(text) + 2_000
