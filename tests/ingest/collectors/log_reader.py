"""Follows a log into a file, with a checkpoint, until killed or until it has COUNT: python log_reader.py FOLDER CHECKPOINT OUT [COUNT]"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from ingest.collectors.log_files import Checkpoint, LogFiles, load, save
from ingest.collectors.log_lines import LogLine, parse
from ingest.collectors.settings import LogSettings

folder, checkpoint, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[4]) if len(sys.argv) > 4 else 0
out = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
files = LogFiles(folder, "*.json", "jsonlog", LogSettings(), True, load(checkpoint))
newest = 0
until = time.monotonic() + 50
while (not count or newest < count) and time.monotonic() < until:
    for records, _ in files.read(time.monotonic()):
        lines = [parse("jsonlog", record) for record in records]
        told = [line.line_num for line in lines if isinstance(line, LogLine)]
        assert len(told) == len(records)
        os.write(out, "".join(f"{number}\n" for number in told).encode())
        newest = max([newest, *told])
    save(checkpoint, Checkpoint(1, 1, 1, files.offsets({}), {}))
    time.sleep(0.02)
