"""In comes a detector's name; out comes whether it finds what is no agent's, and why that is neither muted nor answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

UNANSWERED: Final[Mapping[str, str]] = {
    "shadow": "set kill_shadow = true under [reconcile] to have the sessions that it finds ended",
    "response limit": "an_hour_max under [responses] is the limit that it tells of",
}
"""Detectors whose findings are never an agent's, and what to set instead of a response."""

# One mute of nobody would hide whoever comes next: the sessions of every role, on every server.
UNMUTED: Final[Mapping[str, str]] = {
    "shadow": "a session that goes round the gateway cannot be muted, for that would hide every other one; acknowledge the finding,"
    " or declare its source with pgwarden sources declare",
    "hijacked": "a session that was taken over is muted of one agent by name, for anything wider would hide every other one;"
    " acknowledge the finding, or name the agent",
    "unreconciled": "what was not compared is muted of one agent by name, for anything wider would hide every other session;"
    " acknowledge the finding, or name the agent",
    "response limit": "that findings were left unanswered cannot be muted, for that would hide every other time; acknowledge the"
    " finding",
}
"""Detectors whose findings may be nobody's, and what to do instead of a mute of nobody or of every agent."""
