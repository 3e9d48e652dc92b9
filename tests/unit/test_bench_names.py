"""The server of names that `bench dns` asks says what a client of DNS understands."""

from __future__ import annotations

import dns.message

from penstock.bench import names


def test_every_name_has_an_address_of_its_own() -> None:
    asked = dns.message.from_wire(names.question(7, 70_001))
    assert asked.question[0].to_text() == "h70001.bench.test. IN A"
    found = dns.message.from_wire(names.answer(asked.to_wire()))
    assert asked.is_response(found)
    assert [record.address for record in found.answer[0]] == ["198.19.17.113"]
