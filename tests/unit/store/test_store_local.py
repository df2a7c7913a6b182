"""What only files do: writers that are killed, full and read-only disks, links, file systems."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kubealign_components.errors import NotFound, StoreError
from kubealign_components.store import store_for
from kubealign_components.store.local import READABLE, LocalStore

PUBLISH_FOREVER = """
import sys
from kubealign_components.store.local import LocalStore
for number in range(10_000):
    LocalStore().publish(f"{sys.argv[1]}/{number:05d}", bytes(4 << 20))
"""

PUBLISH_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from kubealign_components.store.local import LocalStore
from kubealign_components.errors import StoreError
folder, file = Path(sys.argv[1]), Path(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
for write in (
    lambda: LocalStore().publish(f"{folder}/object", bytes(2 << 20)),
    lambda: LocalStore().publish_file(file, f"{folder}/object"),
):
    try:
        write()
    except StoreError as error:
        print(error)
"""

PUBLISH_WHERE_FORBIDDEN = """
import os, sys, tempfile
from pathlib import Path
from kubealign_components.store.local import LocalStore
from kubealign_components.errors import StoreError
folder = Path(tempfile.mkdtemp())
(folder / "there").write_bytes(b"x")
folder.chmod(0o555)
if os.geteuid() == 0:
    os.seteuid(65534)
store = LocalStore()
for action in (
    lambda: store.publish(f"{folder}/object", b"x"),
    lambda: store.publish(f"{folder}/sub/object", b"x"),
    lambda: store.copy(f"{folder}/there", f"{folder}/object"),
    lambda: store.delete(f"{folder}/there"),
):
    try:
        action()
    except StoreError as error:
        print(error)
assert [entry.name for entry in folder.iterdir()] == ["there"]
"""


def python(program: str, *arguments: object) -> list[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.parametrize("given", ["bytes", "file"])
def test_bytes_and_name_are_sent_to_the_disk_before_they_are_said_to_be_there(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: sent.append(os.fstat(descriptor).st_ino))
    target = tmp_path / "published" / "object"
    if given == "bytes":
        LocalStore().publish(str(target), b"rows")
    else:
        (tmp_path / "origin").write_bytes(b"rows")
        LocalStore().publish_file(tmp_path / "origin", str(target))
    assert sent == [target.stat().st_ino, target.parent.stat().st_ino]


def test_a_killed_writer_leaves_nothing_that_is_listed(tmp_path: Path) -> None:
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        writer = subprocess.Popen([sys.executable, "-c", PUBLISH_FOREVER, str(folder)])
        while not any(folder.glob("0000[1-9]")):
            time.sleep(0.001)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        listed = list(LocalStore().list(str(folder)))
        assert listed
        assert all(entry.size == 4 << 20 for entry in listed)
        assert not any(".kubealign-" in entry.uri for entry in listed)
        if any(folder.glob(".kubealign-*")):
            return
    pytest.fail("no writer was killed in the middle of a write")


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_bytes(bytes(2 << 20))
    file.chmod(0o600)  # so it is copied
    said = python(PUBLISH_ON_A_FULL_DISK, folder, file)
    assert [f"{folder}/object" in line and "nothing was published" in line for line in said] == [True, True]
    assert list(folder.iterdir()) == []


def test_a_place_without_permission_is_named_and_left_as_it_was() -> None:
    said = python(PUBLISH_WHERE_FORBIDDEN)
    assert len(said) == 4
    assert all("Permission denied" in line for line in said)


def test_a_copy_of_a_link_is_of_the_file_behind_it(tmp_path: Path) -> None:
    store, link = LocalStore(), tmp_path / "a" / "link"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x")
    link.symlink_to("file")
    assert store.copy(str(link), str(tmp_path / "b" / "copy"))
    (tmp_path / "a" / "file").unlink()
    assert store.read(str(tmp_path / "b" / "copy")) == b"x"
    assert not store.exists(str(link))
    with pytest.raises(NotFound):
        store.read(str(link))


def test_links_in_a_circle_are_not_followed(tmp_path: Path) -> None:
    store = LocalStore()
    store.publish(str(tmp_path / "folder" / "object"), b"x")
    (tmp_path / "folder" / "circle").symlink_to(tmp_path)
    (tmp_path / "folder" / "broken").symlink_to(tmp_path / "absent")
    (tmp_path / "folder" / "linked").symlink_to("object")
    listed = [Path(entry.uri).name for entry in store.list(str(tmp_path))]
    assert listed == ["linked", "object"]


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="needs a second file system")
def test_a_copy_to_another_file_system(tmp_path: Path) -> None:
    store, target = LocalStore(), f"/dev/shm/kubealign-{os.getpid()}"
    store.publish(str(tmp_path / "object"), b"x")
    try:
        assert store.copy(str(tmp_path / "object"), target)
        assert not store.copy(str(tmp_path / "object"), target)
        assert store.read(target) == b"x"
    finally:
        store.delete(target)


def test_what_lies_below_a_file_is_absent(tmp_path: Path) -> None:
    store, below = store_for(str(tmp_path)), str(tmp_path / "file" / "object")
    store.publish(str(tmp_path / "file"), b"x")
    with pytest.raises(NotFound):
        store.read(below)
    with pytest.raises(StoreError, match=r"file/object.*nothing was published"):
        store.publish(below, b"x")
    assert not store.exists(below)
    assert list(store.list(below)) == []


def test_file_uris_are_paths(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/object"
    assert store_for(uri).publish(uri, b"x")
    assert (tmp_path / "object").read_bytes() == b"x"


def test_a_published_file_outlives_its_first_name(tmp_path: Path) -> None:
    path, target = tmp_path / "made", tmp_path / "store" / "object"
    path.write_bytes(b"rows")
    path.chmod(0o644)
    assert LocalStore().publish_file(path, str(target))
    assert target.samefile(path)
    path.unlink()
    assert target.read_bytes() == b"rows"


@pytest.mark.parametrize("private", [True, False])
def test_links_and_private_files_are_copied(tmp_path: Path, private: bool) -> None:
    path, target = tmp_path / "made", tmp_path / "object"
    path.write_bytes(b"rows")
    path.chmod(0o600 if private else 0o644)
    if not private:
        path = path.rename(tmp_path / "elsewhere")
        (tmp_path / "made").symlink_to(path)
    assert LocalStore().publish_file(tmp_path / "made", str(target))
    assert not target.is_symlink()
    assert not target.samefile(path)
    assert target.stat().st_mode & 0o777 == READABLE
