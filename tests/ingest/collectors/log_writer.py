"""Writes a log as PostgreSQL would, in torn pieces, and rotates it: python log_writer.py FOLDER "rename"|"new file" COUNT"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

folder, rotation, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
chance = random.Random(11)


def opened(number: int) -> int:
    name = "postgresql.json" if rotation == "rename" else f"postgresql-{number:06}.json"
    return os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


out = opened(1)
for number in range(1, count + 1):
    at = f"2027-01-15 {8 + number // 3_600_000:02}:{number // 60_000 % 60:02}:{number // 1000 % 60:02}.{number % 1000:03} UTC"
    said = {"timestamp": at, "session_id": "6b000000.10", "line_num": number, "message": "m" * chance.randrange(200)}
    line = json.dumps(said, separators=(",", ":")).encode() + b"\n"
    split = chance.randrange(len(line))
    os.write(out, line[:split])
    os.write(out, line[split:])
    if number % 100 == 0:
        time.sleep(0.01)
    if number % 700 == 0:
        if rotation == "rename":
            (folder / "postgresql.json").rename(folder / f"postgresql.json.{number}")
        os.close(out)
        out = opened(number)
