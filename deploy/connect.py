"""Be the agent `reporter` once: an access token from Keycloak, a session through a gateway, one statement that is allowed and one
that is not.

    python deploy/connect.py FOLDER [ISSUER [HOST:PORT ...]]

FOLDER is the `pgwarden` folder that setup.py made. Of several addresses the first gateway that answers is taken.
"""

from __future__ import annotations

import ssl
import sys
from pathlib import Path
from typing import Final

import httpx
import psycopg

ISSUER: Final = "https://keycloak:8443/realms/agents"
GATEWAYS: Final = ("gateway-1:6432", "gateway-2:6432")


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0])
    issuer = arguments[1] if len(arguments) > 1 else ISSUER
    gateways = arguments[2:] or list(GATEWAYS)
    authority = folder / "ca.pem"
    answer = httpx.post(
        f"{issuer}/protocol/openid-connect/token",
        data={"grant_type": "client_credentials"},
        auth=("reporter", (folder / "reporter-secret").read_text().strip()),
        verify=ssl.create_default_context(cafile=str(authority)),
        timeout=10,
    )
    answer.raise_for_status()
    with psycopg.connect(
        host=",".join(address.rpartition(":")[0] for address in gateways),
        port=",".join(address.rpartition(":")[2] for address in gateways),
        dbname="shop",
        user="reporter",
        password=answer.json()["access_token"],
        sslmode="verify-full",
        sslrootcert=str(authority),
        autocommit=True,
        connect_timeout=10,
    ) as connection:
        print("orders:", connection.execute("SELECT count(*) FROM orders").fetchone())
        try:
            connection.execute("SELECT * FROM salaries")
        except psycopg.errors.InsufficientPrivilege as refused:
            print("salaries:", refused)
            return 0
    print("salaries were shown: that must not be", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
