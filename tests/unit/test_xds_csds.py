"""Client status discovery: exactly what each client acknowledged and refused."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.admin.v3.config_dump_shared_pb2 import ClientResourceStatus
from envoy.service.status.v3 import csds_pb2
from google.protobuf import text_format
from xds_dialogue import CDS, EDS, SDS, Dialogue, cds, res, snap

from penstock.xds.csds import client_status
from penstock.xds.errors import ProtocolError


def ask(*dialogues: Dialogue, matchers: str = "", contents: bool = True) -> dict[str, dict[str, Any]]:
    """Node id → name → what is told of it."""
    request = csds_pb2.ClientStatusRequest(exclude_resource_contents=not contents)
    text_format.Parse(matchers, request)
    answer = client_status([d.session for d in dialogues], request)
    assert len({config.node.id for config in answer.config}) == len(answer.config)
    return {c.node.id: {item.name: item for item in c.generic_xds_configs} for c in answer.config}


def states(told: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {
        name: (
            csds_pb2.ConfigStatus.Name(item.config_status),
            ClientResourceStatus.Name(item.client_status),
        )
        for name, item in told.items()
    }


def test_every_state_there_is() -> None:
    d = Dialogue(snap(res(EDS, "synced"), res(EDS, "refused"), res(EDS, "stale"), res(EDS, "sent")))
    heard = {next(iter(s.resources)): s for s in d.ask(EDS, "synced", "refused", "stale", "sent", node="me")}
    for name in ("synced", "refused", "stale"):
        d.ack(heard[name])
    assert states(ask(d)["me"])["sent"] == ("STALE", "REQUESTED")
    d.ack(heard["sent"])
    changed = d.publish(
        snap(res(EDS, "synced"), res(EDS, "refused", "2"), res(EDS, "stale", "2"), res(EDS, "sent"))
    )
    d.nack(next(s for s in changed if "refused" in s.resources), "no such thing")
    d.ack_all(d.ask(EDS, "absent"))
    told = ask(d)["me"]
    assert states(told) == {
        "absent": ("NOT_SENT", "DOES_NOT_EXIST"),
        "refused": ("ERROR", "NACKED"),
        "sent": ("SYNCED", "ACKED"),
        "stale": ("STALE", "REQUESTED"),
        "synced": ("SYNCED", "ACKED"),
    }
    refused = told["refused"]
    assert (refused.version_info, refused.xds_config.value) == ("1", b"refused@1")
    assert (refused.error_state.details, refused.error_state.version_info) == ("no such thing", "2")
    assert refused.error_state.failed_configuration.value == b"refused@2"
    bare = ask(d, contents=False)["me"]["refused"]
    assert not bare.HasField("xds_config")
    assert not bare.error_state.HasField("failed_configuration")


def test_streams_of_one_node_are_one_client_and_others_are_told_apart() -> None:
    clusters, endpoints, other = Dialogue(snap(*cds("c"))), Dialogue(snap(res(EDS, "e"))), Dialogue(snap())
    clusters.ask(CDS, node="one")
    endpoints.ask(EDS, "e", node="one")
    other.ask(CDS, node="two")
    silent = Dialogue(snap())
    told = ask(clusters, endpoints, other, silent)
    assert {node: set(found) for node, found in told.items()} == {"one": {"c", "e"}, "two": set()}
    assert set(ask(clusters, other, matchers='node_matchers { node_id { prefix: "t" } }')) == {"two"}
    either = 'node_matchers { node_id { exact: "one" } } node_matchers { node_id { contains: "wo" } }'
    assert set(ask(clusters, other, matchers=either)) == {"one", "two"}
    lost = 'node_matchers { node_metadatas { path { key: "zone" } value { string_match { exact: "z" } } } }'
    assert ask(clusters, other, matchers=lost) == {}


@pytest.mark.parametrize(
    "matcher",
    [
        'node_id { safe_regex { regex: "(a+)+$" } }',
        'node_id { custom { name: "x" } }',
        'node_metadatas { path { key: "zone" } value { double_match { exact: 1 } } }',
    ],
)
def test_what_cannot_be_matched_is_refused_and_takes_no_time(matcher: str) -> None:
    d = Dialogue(snap())
    d.ask(CDS, node="a" * 64 + "b")
    d.session.node.metadata["zone"] = "z"
    with pytest.raises(ProtocolError, match=r"cannot be matched by (safe_regex|custom|double_match)"):
        ask(d, matchers=f"node_matchers {{ {matcher} }}")


def test_a_path_that_goes_on_behind_a_value_leads_nowhere() -> None:
    d = Dialogue(snap())
    d.ask(CDS, node="me")
    d.session.node.metadata.update({"zone": "z", "rack": 3})
    for key in ("zone", "rack"):
        path = f'path {{ key: "{key}" }} path {{ key: "z" }} value {{ present_match: true }}'
        assert ask(d, matchers=f"node_matchers {{ node_metadatas {{ {path} }} }}") == {}


def test_keys_do_not_leave() -> None:
    d = Dialogue(snap(res(SDS, "key")))
    d.ack_all(d.ask(SDS, "key", node="me"))
    told = ask(d)["me"]["key"]
    assert states({"key": told}) == {"key": ("SYNCED", "ACKED")}
    assert not told.HasField("xds_config")
