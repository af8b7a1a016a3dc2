"""Records of which nobody knows whether they are of one person, for browser tests of match reviews."""

from __future__ import annotations

from services.client.mesh import Clients
from tandem.registry.v1 import registry_pb2
from tests.support.common.mesh import PATIENCE_S
from tests.support.registry import records
from tests.support.registry.registry import MOJ, NPA

NAME, ADDRESS = "남궁비밀", "서울특별시 비밀구 숨은로 17"


async def put_undecided_records(clients: Clients) -> None:
    """Puts a wearer, and an emergency measure against a respondent of the same name who was born a year later."""
    wearer = records.wearer("w-review", "780717-1234567")
    wearer.name = NAME
    wearer.birth_date = "1978-07-17"
    wearer.sex = registry_pb2.SEX_MALE
    wearer.phone, wearer.address = "010-9876-5432", ADDRESS
    order = records.order("o-review", ("p-review",), national_id="")
    order.type = registry_pb2.ORDER_TYPE_POLICE_EMERGENCY
    order.duration_reason = "a test's order lasts long"
    order.respondent.name, order.respondent.birth_date = NAME, "1979-07-17"
    order.respondent.sex, order.respondent.phone = registry_pb2.SEX_MALE, "010-9876-5433"
    moj, npa = clients.identity(MOJ), clients.identity(NPA)
    put_wearer = registry_pb2.PutWearerRequest(wearer=wearer)
    await clients.registry.PutWearer(put_wearer, metadata=moj, wait_for_ready=True, timeout=PATIENCE_S)
    tag = records.tag("tag-review", "w-review")
    await clients.registry.PutTag(registry_pb2.PutTagRequest(tag=tag), metadata=moj)
    person = registry_pb2.PutProtectedPersonRequest(protected_person=records.person("p-review"))
    await clients.registry.PutProtectedPerson(person, metadata=npa)
    await clients.registry.PutOrder(registry_pb2.PutOrderRequest(order=order), metadata=npa)
