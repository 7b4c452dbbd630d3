"""What `node` reads of others: DHT records, mDNS answers, relays, what commands and applications ask, files of people."""

from __future__ import annotations

import io
import ipaddress
import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from node import config, control, jobs
from node.finding import lan, relays, rendezvous
from node.guarding import bans
from node.serving.api import requests as api
from node.syncing import parcels
from protocol import canon, envelope, keys, parcel, wire
from protocol.canon import Json
from protocol.errors import Malformed, Retry
from protocol.ids import CollectiveId, digest, peer_id
from tests.fuzz.harness import Target

KEY = keys.SigningKey(b"\x05" * 32)
PEER = peer_id(bytes(KEY.verify_key))
SEAL = rendezvous.Seal(KEY)
COLLECTIVE = CollectiveId(digest(b"collective"))
LINKS = (ipaddress.IPv4Interface("192.168.7.3/24"),)


# -- the network -----------------------------------------------------------------------------------------------------------
def record(data: bytes) -> bool:
    """A DHT record whose four fields are cut out of the bytes: judged, never believed."""
    own = bytes(KEY.verify_key).hex()
    key, subkey = rendezvous.key_id(own), b"\xd9\x40" + own.encode()
    for entry in (
        rendezvous.Entry(key=key, subkey=subkey, value=data, expires=60.0),
        rendezvous.Entry(key=data[:20], subkey=data[20:86], value=data[86:], expires=float(len(data))),
    ):
        if SEAL.check(entry, 0.0):
            rendezvous.unpack(SEAL.strip(entry.value))
    return False


def sealed() -> Iterator[bytes]:
    own = bytes(KEY.verify_key).hex()
    subkey = b"\xd9\x40" + own.encode()
    for value in (rendezvous.pack(["/ip4/127.0.0.1/tcp/5"]), b"{}", b""):
        yield SEAL.sign(rendezvous.Entry(key=rendezvous.key_id(own), subkey=subkey, value=value, expires=60.0))


def shown(data: bytes) -> None:
    """What a service on the LAN says of itself, as zeroconf hands it on."""
    value = canon.decode_object(data)
    port, hosts = value.get("port"), value.get("hosts")
    service = lan.Shown(
        name=str(value.get("name")),
        port=port if isinstance(port, int) else None,
        salt=str(value.get("salt")).encode("utf-8", "replace")[:40],
        tag=_hex(value.get("tag")),
        hosts=tuple(map(str, hosts)) if isinstance(hosts, list) else (),
    )
    lan.judge(service, COLLECTIVE, LINKS)


def _hex(value: Json) -> bytes:
    try:
        return bytes.fromhex(str(value))
    except ValueError:
        return b""


def services() -> Iterator[bytes]:
    salt = "8 bytes!"
    yield canon.encode(
        {
            "name": f"{PEER}.{lan.SERVICE}",
            "port": 4242,
            "salt": salt,
            "tag": lan.tag(salt.encode(), COLLECTIVE, PEER).hex(),
            "hosts": ["192.168.7.9", "10.0.0.1", "::1"],
        }
    )


def bundled(data: bytes) -> None:
    """A bundle file that was carried here, in the open or sealed for us."""
    try:
        reader = parcels.Reader(io.BytesIO(data), KEY)
        for _ in reader.items():
            pass
    except Retry as e:  # it ends early
        raise Malformed(str(e)) from None


def files() -> Iterator[bytes]:
    me = keys.member_id(KEY)
    page = parcel.Page(member=me, page=wire.page_of(b"note", []))
    for sealed_for_us in (False, True):
        secret = envelope.fresh_key() if sealed_for_us else None
        readers = {} if secret is None else {me: envelope.seal_key(secret, me)}
        header = parcel.signed(KEY, collective=COLLECTIVE, made=5, since={}, heads={me: 1}, readers=readers)
        file = io.BytesIO()
        writer = parcels.Writer(file, header, secret)
        writer.item(page)
        writer.blob(parcel.Blob(digest=digest(b"blob"), size=4), [b"blob"])
        writer.end()
        yield file.getvalue()


def relayed(data: bytes) -> tuple[str, ...]:
    value = canon.decode(data)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Malformed("couldn't read relays: a list of texts is expected")
    return relays.merged([str(item) for item in value])


# -- people and applications -------------------------------------------------------------------------------------------------
def asked(model):
    """A body of the API: what pydantic refuses is answered with 400."""

    def read(data: bytes) -> None:
        try:
            value = model.model_validate_json(data)
        except ValidationError as e:
            faults = e.errors(include_url=False, include_input=False)
            raise Malformed(f"couldn't read request: {len(faults)} faults") from None
        if hasattr(value, "sampling"):
            value.sampling()

    return read


def configured(data: bytes) -> object:
    """A configuration as it lies on disk."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise Malformed("couldn't read config: not UTF-8") from None
    return config.parse(text, source=Path("node.toml"))


def jobbed(data: bytes) -> object:
    return jobs.parse_event(data)


def banned(data: bytes) -> object:
    return bans.parse_bans(data)


def kept() -> Iterator[bytes]:
    ban = {
        "peer": PEER, "member": None, "by": "guard", "code": "flood", "why": "x", "since": 1.5, "until": 9.0, "times": 2,
    }  # fmt: skip
    mine = {**ban, "peer": None, "member": digest(b"m"), "by": "operator", "until": None}
    yield json.dumps({"v": 1, "bans": [ban, mine], "times": [[PEER, 2, 9.0]]}).encode()


def chats() -> Iterator[bytes]:
    yield json.dumps(
        {
            "model": "base",
            "messages": [{"role": "user", "content": "hello"}, {"role": "user", "content": [{"type": "text", "text": "a"}]}],
            "temperature": 0.5, "n": 2, "stop": ["x"], "stream": True, "stream_options": {"include_usage": True},
            "response_format": {"type": "json_object"}, "logprobs": True, "top_logprobs": 3, "seed": 5,
        }
    ).encode()  # fmt: skip


def completions() -> Iterator[bytes]:
    yield json.dumps({"model": "base", "prompt": ["a", "b"], "max_tokens": 5, "logprobs": 2, "echo": True}).encode()
    yield json.dumps({"model": "base", "prompt": [[1, 2], [3]], "stop": "x", "top_p": 0.1}).encode()


TARGETS = (
    Target(name="dht-record", read=record, seeds=sealed),
    Target(
        name="dht-value",
        read=rendezvous.unpack,
        write=rendezvous.pack,
        seeds=lambda: [rendezvous.pack(["/ip4/127.0.0.1/tcp/5", "/dns/a.example/tcp/1"])],
        json=True,
    ),
    Target(name="lan-service", read=shown, seeds=services, json=True),
    Target(name="bundle-file", read=bundled, seeds=files),
    Target(name="relays", read=relayed, seeds=lambda: [canon.encode([f"/ip4/1.2.3.4/tcp/5/p2p/{PEER}"])], json=True),
    Target(
        name="control-request",
        read=control._asked,
        seeds=lambda: [b'{"name":"status","args":{}}', b'{"name":"data.add","args":{"path":"x","n":1.5}}'],
        json=True,
        weight=0.5,
    ),
    Target(name="api-chat", read=asked(api.ChatRequest), seeds=chats, json=True),
    Target(name="api-completion", read=asked(api.CompletionRequest), seeds=completions, json=True),
    Target(
        name="api-embedding",
        read=asked(api.EmbeddingRequest),
        seeds=lambda: [
            b'{"model":"base","input":["a","b"],"encoding_format":"base64"}',
            b'{"model":"base","input":[[1]]}',
        ],
        json=True,
        weight=0.5,
    ),
    Target(name="config", read=configured, seeds=lambda: [config.template(name="a").encode()], weight=0.5),
    Target(name="worker-event", read=jobbed, seeds=lambda: [b'{"event":"step","step":1}', b"noise"], weight=0.3),
    Target(name="bans", read=banned, seeds=kept, json=True),
)
