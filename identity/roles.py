"""What an operator may do: three roles, each of which may all that the one before it may."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Literal, TypeAlias, TypeVar

Role: TypeAlias = Literal["viewer", "responder", "administrator"]

ROLES: Final[tuple[Role, ...]] = ("viewer", "responder", "administrator")  # the narrowest first

MAY: Final[dict[Role, str]] = {
    "viewer": "read answers and ask SQL",
    "responder": "also stop agents, sessions, people and grants, and look after findings",
    "administrator": "also register agents, approve grants, and change what holds for everybody",
}

Route = TypeVar("Route", bound=Callable[..., object])

_ROLE: Final = "__pgwarden_role__"
_LOOK: Final = "__pgwarden_look__"


def allows(role: Role, needed: Role) -> bool:
    return ROLES.index(role) >= ROLES.index(needed)


def widest(roles: Iterable[Role]) -> Role | None:
    """Of several that one person has."""
    found = set(roles)
    return next((role for role in reversed(ROLES) if role in found), None)


def needs(role: Role, *, look: bool | None = None) -> Callable[[Route], Route]:
    """Declare which role a route wants. The one way to do it; it stands next to the function, below the route's own decorator:

        @routes.get("/findings", summary="What the detectors raised")
        @needs("viewer")
        async def findings(request: Request) -> Response: ...

    A route without it is shut: it answers 403 to everybody, administrators included.

    `look` says whether an answer shows something of the record, and so is itself recorded before it goes out: by default what GET
    answers does, and what other methods answer does not.
    """

    def declare(route: Route) -> Route:
        setattr(route, _ROLE, role)
        setattr(route, _LOOK, look)
        return route

    return declare


def needed_by(route: Callable[..., object]) -> Role | None:
    """None for a route that declares no role, which nobody may call."""
    role: Role | None = getattr(route, _ROLE, None)
    return role


def is_look(route: Callable[..., object], method: str) -> bool:
    look: bool | None = getattr(route, _LOOK, None)
    return method == "GET" if look is None else look
