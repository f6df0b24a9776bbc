"""What a worker is called when nobody named it."""

from __future__ import annotations

import socket
from pathlib import Path

from pgwarden.worker_process import own_name


def test_a_worker_without_a_name_gets_one_of_its_machine_and_state_folder(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    assert own_name(one).startswith(f"{socket.gethostname()}-")
    assert own_name(one) != own_name(two)


def test_one_state_folder_is_one_name_however_it_is_reached(tmp_path: Path) -> None:
    state, link = tmp_path / "state", tmp_path / "link"
    state.mkdir()
    link.symlink_to(state)
    assert own_name(state) == own_name(link) == own_name(tmp_path / "." / "link")
