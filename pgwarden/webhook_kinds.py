"""What a webhook may ask to be told of. Apart, so that a command that only asks the API need not load every event."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, get_args

Kind: TypeAlias = Literal["findings", "kills", "revocations", "blindness"]
Severity: TypeAlias = Literal["info", "warning", "critical"]

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)  # least first
