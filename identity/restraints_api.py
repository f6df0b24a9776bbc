"""What was chosen for findings, and who is held back now, over HTTP. docs/api.md describes it."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from identity.api import Authenticate, guarded, iso
from identity.registry import Registry
from identity.restraints import Hold, Throttle
from identity.roles import needs


def router(registry: Registry, authenticate: Authenticate) -> APIRouter:
    routes = APIRouter(prefix="/v1", route_class=guarded(authenticate))

    @routes.get("/responses", summary="What was chosen, and who is throttled or held now")
    @needs("viewer", look=False)
    async def responses() -> JSONResponse:
        restraints = registry.restraints
        chosen = [
            {"detector": detector, "agent": agent, "response": made.response, "operator": made.by, "chosen_at": iso(made.at_us)}
            for (detector, agent), made in sorted(restraints.chosen.items())
        ]
        throttled = [
            {"agent": agent, "per_minute": by.per_minute} | _restrained(by) for agent, by in sorted(restraints.throttles.items())
        ]
        held = [{"agent": agent} | _restrained(by) for agent, by in sorted(restraints.holds.items())]
        return JSONResponse({"items": chosen, "next": None, "throttled": throttled, "held": held})

    return routes


def _restrained(by: Throttle | Hold) -> dict[str, str]:
    return {"operator": by.by, "since_at": iso(by.at_us), "reason": by.reason, "finding": by.finding}
