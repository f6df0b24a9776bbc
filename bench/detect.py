"""How many incidents the detectors find in two weeks of a made-up company, how soon, how often they are wrong, and what it costs.

`make bench-detect`. The seeds below were not used while the detectors' numbers were chosen; those that were are `TUNED`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from analytics.detection import Detection
from bench.detect_world import DAY, HOUR, INCIDENTS, START_US, Label, World
from ingest.events import FindingRaised

TUNED: Final = (1, 2, 3)
SEEDS: Final = (201, 202, 203)
GRACE_US: Final = HOUR  # after an incident, in which what it left behind is still told of it
FRAMES_AT_ONCE: Final = 5_000  # made, and then timed
SETTLED_DAYS: Final = 3  # the warm-up, in which little is told of anybody


@dataclass
class Result:
    labels: int = 0
    found: Counter[str] = field(default_factory=Counter)
    of: Counter[str] = field(default_factory=Counter)
    delays: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    false_alarms: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    agent_days: int = 0
    events: int = 0
    cpu_seconds: float = 0.0
    state_bytes: int = 0
    agents: int = 0

    @property
    def recall(self) -> float:
        return sum(self.found.values()) / max(1, sum(self.of.values()))

    @property
    def false_a_day(self) -> float:
        return sum(self.false_alarms.values()) / max(1, self.agent_days)

    @property
    def us_an_event(self) -> float:
        return self.cpu_seconds * 1e6 / max(1, self.events)


def run(seeds: Sequence[int], agents: int = 300, days: int = 14, incidents: int = 130) -> Result:
    result = Result()
    for seed in seeds:
        _run(World(seed, agents, days, incidents), result)
    return result


def _run(world: World, result: Result) -> None:
    detection = Detection()
    raised: list[FindingRaised] = []
    spent = 0.0
    events = 0
    frames = world.frames()
    while some := list(islice(frames, FRAMES_AT_ONCE)):
        began = time.thread_time()
        effects = [effect for record, frame in some for effect in detection.step(record, frame, record.at_us)]
        spent += time.thread_time() - began
        events += sum(len(frame.events) for _, frame in some)
        raised += [effect for effect in effects if isinstance(effect, FindingRaised)]
    result.cpu_seconds += spent
    result.events += events
    result.state_bytes += len(detection.encode())
    result.agents += len(world.actors)
    labels: dict[str, list[Label]] = defaultdict(list)
    for label in world.labels:
        labels[label.agent].append(label)
        result.of[label.kind.name] += 1
        hits = [
            finding.at_us
            for finding in raised
            if finding.agent == label.agent
            and finding.detector in label.kind.detectors
            and label.begin_us <= finding.at_us <= label.end_us + GRACE_US
        ]
        if hits:
            result.found[label.kind.name] += 1
            result.delays[label.kind.name].append((min(hits) - label.begin_us) / 1e6)
    settled_us = START_US + SETTLED_DAYS * DAY
    for finding in raised:
        during = any(label.begin_us <= finding.at_us <= label.end_us + GRACE_US for label in labels[finding.agent])
        if not during and finding.at_us >= settled_us:
            result.false_alarms[finding.detector] += 1
            result.examples.append(f"{finding.agent} {finding.detector}: {finding.summary}")
    result.agent_days += sum(world.days - max(SETTLED_DAYS, actor.first_day) for actor in world.actors)


def report(result: Result) -> str:
    lines = [f"{'incident':<18} {'found':>9} {'recall':>7} {'median delay':>13}"]
    for kind in INCIDENTS:
        of, found = result.of[kind.name], result.found[kind.name]
        if of:
            delay = statistics.median(result.delays[kind.name]) if found else 0.0
            lines.append(f"{kind.name:<18} {found:>4}/{of:<4} {found / of:>6.0%} {delay:>11.0f} s")
    lines.append(f"recall {result.recall:.1%} of {sum(result.of.values())} incidents")
    wrong = ", ".join(f"{name} {count}" for name, count in result.false_alarms.most_common())
    lines.append(f"false alarms {result.false_a_day:.4f} an agent-day, {result.agent_days} agent-days ({wrong or 'none'})")
    lines.append(f"{result.us_an_event:.2f} us CPU an event, {result.events} events")
    lines.append(f"{result.state_bytes / result.agents / 1024:.1f} kB of state an agent")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tuned", action="store_true", help="the seeds that the numbers were chosen on")
    parser.add_argument("--agents", type=int, default=300)
    parser.add_argument("--examples", type=int, default=0, help="so many false alarms, in words")
    arguments = parser.parse_args()
    result = run(TUNED if arguments.tuned else SEEDS, arguments.agents)
    print(report(result))
    for example in result.examples[: arguments.examples]:
        print(example)


if __name__ == "__main__":
    main()
