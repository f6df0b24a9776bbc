"""`python -m pgwarden` is `pgwarden`."""

from __future__ import annotations

from pgwarden.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
