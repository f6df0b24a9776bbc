"""The rows of a question as a file: CSV for a spreadsheet, Parquet for a program. The API makes it, and records who took it."""

from __future__ import annotations

from typing import Final

import streamlit as st

from dashboards import ledger, reach
from dashboards.api_client import ApiTrouble
from dashboards.ledger import Banner

FORMATS: Final = {"CSV": ("csv", "text/csv"), "Parquet": ("parquet", "application/vnd.apache.parquet")}


def draw(sql: str, name: str, *, key: str) -> None:
    """A file is made when its button is pressed, not before: each is a look at the record."""
    with st.container(horizontal=True, vertical_alignment="center", key=key):
        for label, (ending, media_type) in FORMATS.items():
            if st.button(f"Make {label}", key=f"{key} {label}", type="tertiary", icon=":material/download:"):
                try:
                    made = reach.client().export(sql, media_type)
                except ApiTrouble as error:
                    ledger.banners([Banner("warn", "No file was made.", f"{error} {error.remedy}".strip())], key=f"{key} failed")
                else:
                    st.download_button(
                        f"Save {name}.{ending}", made.body, f"{name}.{ending}", media_type, key=f"{key} save", type="primary"
                    )
                    if made.notice:
                        ledger.banners([Banner("warn", "Not all of it is in the file.", made.notice)], key=f"{key} cut")
