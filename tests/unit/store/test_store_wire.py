"""What a network does to stores: answers lost, cut, changed or refused, and what is really asked."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest

from kubealign_components.errors import StoreError
from kubealign_components.store import join, scheme_of, store_for
from kubealign_components.store.s3 import S3Store
from support.store_servers import BUCKET, place_in
from support.store_wire import Wire

UPLOAD = {"gs": "POST", "s3": "PUT"}
FETCH = {"gs": ["pass"], "s3": []}
"""What comes by GET before the bytes of a file: its description, for which S3 has HEAD."""


def test_a_write_whose_answer_is_lost_was_this_calls_own(remote: str, wire: Wire) -> None:
    store, uri = store_for(remote), join(remote, "object")
    wire.spoil(UPLOAD[scheme_of(remote)], "lose")
    assert store.publish(uri, b"mine")
    assert not store.publish(uri, b"theirs")
    assert store.read(uri) == b"mine"


def test_a_download_that_breaks_is_finished(remote: str, wire: Wire, tmp_path: Path) -> None:
    store, uri, data = store_for(remote), join(remote, "object"), random.Random(0).randbytes(3_000_000)
    store.publish(uri, data)
    wire.spoil("GET", "cut")
    assert store.read(uri) == data
    wire.spoil("GET", *FETCH[scheme_of(remote)], "cut")
    assert store.fetch(uri, tmp_path).read_bytes() == data


def test_a_bit_that_flips_on_the_way_is_noticed(remote: str, wire: Wire, tmp_path: Path) -> None:
    store, uri = store_for(remote), join(remote, "object")
    store.publish(uri, b"precious")
    wire.spoil("GET", "flip")
    with pytest.raises(StoreError, match=r"object.*[Cc]hecksum"):
        store.read(uri)
    wire.spoil("GET", *FETCH[scheme_of(remote)], "flip")
    with pytest.raises(StoreError, match="object"):
        store.fetch(uri, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_refusal_says_what_to_allow(remote: str, wire: Wire) -> None:
    wire.spoil("GET", "refuse")
    with pytest.raises(StoreError, match=r"object.*access denied.*(Storage Object User|s3:GetObject)"):
        store_for(remote).read(join(remote, "object"))


def test_every_write_is_conditional(remote: str, wire: Wire, tmp_path: Path) -> None:
    store, large = store_for(remote), tmp_path / "large"
    large.write_bytes(bytes(9 * 2**20))
    source = join(remote, "source")
    store.publish(source, b"x")
    store.publish_file(large, join(remote, "large"))
    store.copy(source, join(remote, "target"))
    if scheme_of(remote) == "gs":
        assert len(wire.asked("POST", "uploadType=multipart&ifGenerationMatch=0")) == 1
        assert len(wire.asked("POST", "uploadType=resumable&ifGenerationMatch=0")) == 1
        assert [len(wire.asked("POST", text)) for text in ("rewriteTo", "ifGenerationMatch=0")] == [1, 3]
    else:
        assert [headers["if-none-match"] for headers in wire.asked("PUT", "")] == ["*"] * 3


def test_a_long_listing_is_asked_for_page_by_page(remote: str, request: pytest.FixtureRequest) -> None:
    store = store_for(remote)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: store.publish(f"{remote}/{i:04d}", b""), range(1001)))
    wire: Wire = request.getfixturevalue("wire")
    listing = store.list(remote)
    assert wire.requests == []
    next(listing)
    assert len(wire.requests) == 1
    assert len(list(listing)) == 1000
    assert len(wire.requests) == 2


def test_what_is_larger_than_one_request_goes_up_and_is_copied_in_parts(
    s3_server: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_in(request, "s3")
    mebi, data = 2**20, random.Random(0).randbytes(12 * 2**20 + 1)
    store = S3Store(one_put=6 * mebi, one_copy=6 * mebi, part=5 * mebi)
    file = tmp_path / "large"
    file.write_bytes(data)
    wire = Wire(s3_server)
    with wire.open() as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        assert store.publish_file(file, join(place, "large"))
        assert store.copy(join(place, "large"), join(place, "copy"))
        assert not store.publish_file(file, join(place, "large"))
        assert not store.copy(join(place, "large"), join(place, "copy"))
    assert store.read(join(place, "large")) == store.read(join(place, "copy")) == data
    assert len(wire.asked("PUT", "partNumber=")) == 6
    assert [h["if-none-match"] for h in wire.asked("POST", "uploadId=")] == ["*", "*"]


def test_an_upload_in_parts_that_fails_leaves_nothing(
    s3_server: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_in(request, "s3")
    store, file, wire = S3Store(one_put=2**20, part=5 * 2**20), tmp_path / "large", Wire(s3_server)
    file.write_bytes(bytes(6 * 2**20))
    with wire.open() as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        wire.spoil("PUT", "refuse")
        with pytest.raises(StoreError, match="access denied"):
            store.publish_file(file, join(place, "large"))
    assert len(wire.asked("DELETE", "uploadId=")) == 1
    assert list(store.list(place)) == []
    client = boto3.session.Session().client("s3", endpoint_url=s3_server)
    assert client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []


def test_wrong_s3_keys_are_named(remote_s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ACCESS_KEY_ID", "nobody")):
        monkeypatch.setenv(name, value)
        with pytest.raises(StoreError, match=r"s3://.*refuses these credentials.*AWS_ACCESS_KEY_ID"):
            store_for(remote_s3).publish(join(remote_s3, "object"), b"")
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name)
    with pytest.raises(StoreError, match=r"s3://.*no valid AWS credentials.*set AWS_ACCESS_KEY_ID"):
        store_for(remote_s3).publish(join(remote_s3, "object"), b"")


def test_minio_is_the_store_of_kubeflow_unless_the_environment_names_another(
    remote_s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = remote_s3.replace("s3://", "minio://")
    assert store_for(same).publish(join(same, "object"), b"x")
    assert store_for(remote_s3).read(join(remote_s3, "object")) == b"x"
    assert [found.uri for found in store_for(same).list(same)] == [join(same, "object")]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("KUBEALIGN_STORE_DEADLINE", "0.1")
    # No such host here, so the error tells where it looked.
    with pytest.raises(StoreError, match=r"minio://.*http://seaweedfs\.kubeflow:9000"):
        store_for(same).read(join(same, "object"))


def test_wrong_google_credentials_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "absent.json"))
    with pytest.raises(StoreError, match=r"gs://bucket/object.*absent\.json.*gcloud auth"):
        store_for("gs://bucket").read("gs://bucket/object")


@pytest.fixture
def remote_s3(request: pytest.FixtureRequest) -> str:
    return place_in(request, "s3")
