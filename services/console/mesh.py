"""The console as a client of the mesh: channels to the services, and the identity under which it calls for a user."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc.aio

from services.common.rpc import client, server
from services.common.rpc.certificates import spiffe_id
from services.common.rpc.errors import FailedPrecondition
from services.common.rpc.identity import CONSOLES
from services.common.rpc.server import Metadata
from services.console.domain.people import SELF, ConsoleUser, Role
from services.console.settings import ConsoleSettings
from tandem.dispatch.v1.dispatch_pb2_grpc import DispatchServiceStub
from tandem.dispatch.v1.evidence_pb2_grpc import EvidenceServiceStub
from tandem.dispatch.v1.following_pb2_grpc import FollowingServiceStub
from tandem.dispatch.v1.handover_pb2_grpc import HandoverServiceStub
from tandem.dispatch.v1.notes_pb2_grpc import NoteServiceStub
from tandem.dispatch.v1.order_burden_pb2_grpc import OrderBurdenServiceStub
from tandem.dispatch.v1.phone_state_pb2_grpc import PhoneStateServiceStub
from tandem.dispatch.v1.roster_pb2_grpc import RosterServiceStub
from tandem.dispatch.v1.statistics_pb2_grpc import StatisticsServiceStub
from tandem.dispatch.v1.unit_duty_pb2_grpc import UnitDutyServiceStub
from tandem.geofence.v1.device_state_pb2_grpc import DeviceStateServiceStub
from tandem.geofence.v1.geofence_pb2_grpc import GeofenceServiceStub
from tandem.ingest.v1.battery_pb2_grpc import BatteryServiceStub
from tandem.ingest.v1.ingest_pb2_grpc import CommandServiceStub, IngestServiceStub
from tandem.registry.v1.disclosure_pb2_grpc import DisclosureServiceStub
from tandem.registry.v1.enrolment_pb2_grpc import EnrolmentServiceStub
from tandem.registry.v1.finding_pb2_grpc import FindingServiceStub
from tandem.registry.v1.match_review_pb2_grpc import MatchReviewServiceStub
from tandem.registry.v1.notice_pb2_grpc import NoticeServiceStub
from tandem.registry.v1.order_extension_pb2_grpc import OrderExtensionServiceStub
from tandem.registry.v1.parties_pb2_grpc import PartyServiceStub
from tandem.registry.v1.presence_unit_pb2_grpc import PresenceUnitServiceStub
from tandem.registry.v1.record_search_pb2_grpc import RecordSearchServiceStub
from tandem.registry.v1.registry_pb2_grpc import RegistryServiceStub
from tandem.registry.v1.trace_pb2_grpc import TraceServiceStub


@dataclass(frozen=True, slots=True)
class LegClient:
    """Stubs of one leg."""

    dispatch: DispatchServiceStub
    evidence: EvidenceServiceStub
    following: FollowingServiceStub
    handover: HandoverServiceStub
    order_burden: OrderBurdenServiceStub
    notes: NoteServiceStub
    phone_states: PhoneStateServiceStub
    roster: RosterServiceStub
    statistics: StatisticsServiceStub
    units: UnitDutyServiceStub


@dataclass(frozen=True, slots=True)
class DeskClient:
    """Stubs that the pages of a desk need beside its leg: devices, people and orders."""

    batteries: BatteryServiceStub
    device_states: DeviceStateServiceStub
    disclosures: DisclosureServiceStub
    enrolments: EnrolmentServiceStub
    record_search: RecordSearchServiceStub


@dataclass(frozen=True, slots=True)
class ClerkClient:
    """Stubs that the pages of an agency's records clerk need beside the registry's."""

    order_extensions: OrderExtensionServiceStub
    presence_units: PresenceUnitServiceStub


class MeshClient:
    """Stubs of the services. Each call is made as its user, and the services decide which data a role may see."""

    def __init__(
        self,
        settings: ConsoleSettings,
        registry: RegistryServiceStub,
        traces: TraceServiceStub,
        *,
        findings: FindingServiceStub,
        notices: NoticeServiceStub,
        match_reviews: MatchReviewServiceStub,
        order_people: PartyServiceStub,
        ingest: IngestServiceStub,
        commands: CommandServiceStub,
        geofence: GeofenceServiceStub,
        legs: dict[str, LegClient],
        desk: DeskClient,
        clerk: ClerkClient,
    ) -> None:
        self._settings = settings
        self.clock = settings.clock
        self.registry = registry
        self.traces = traces
        self.findings = findings
        self.notices = notices
        self.match_reviews = match_reviews
        self.order_people = order_people
        self.ingest = ingest
        self.commands = commands
        self.geofence = geofence
        self.desk = desk
        self.clerk = clerk
        self.legs = legs
        """Legs by name: probation, police."""

    def identity(self, user: ConsoleUser) -> Metadata:
        """Returns the metadata of a call for a user. With certificates, it names only the user: the console's own proves the role."""
        if self._settings.tls:
            return () if user.name == SELF else server.on_behalf_of(user.name)
        return server.bearer(user.spiffe_id, self._settings.dev_secret)

    def leg_of(self, role: Role) -> LegClient:
        """Returns the leg whose incidents a role sees."""
        return self.legs[role.leg]

    def own_identity(self, role: Role) -> Metadata:
        """Returns the metadata of the console's own subscriptions for all users of a role."""
        return self.identity(ConsoleUser(role, SELF))


@asynccontextmanager
async def connect(settings: ConsoleSettings) -> AsyncIterator[MeshClient]:
    """Opens the channels. They connect to unavailable services as soon as these are up.

    Raises FailedPrecondition if the certificate isn't that of the role's console: services accept user names only with that one.
    """
    if settings.tls and settings.console_role:
        own, wanted = spiffe_id(settings.tls_files().cert), CONSOLES[settings.console_role]
        if own != wanted:
            raise FailedPrecondition(
                f"TANDEM_TLS_CERT is of {own}, but TANDEM_CONSOLE_ROLE={settings.console_role} needs a certificate of {wanted}"
            )
    async with AsyncExitStack() as stack:

        async def channel(target: str) -> grpc.aio.Channel:
            made = client.connection(settings, target, ConsoleUser(Role.OPERATOR, SELF).spiffe_id)
            return (await stack.enter_async_context(made))[0]

        registry = await channel(settings.registry)
        legs = {}
        for name, target in (("probation", settings.dispatch_probation), ("police", settings.dispatch_police)):
            leg = await channel(target)
            legs[name] = LegClient(
                dispatch=DispatchServiceStub(leg),
                evidence=EvidenceServiceStub(leg),
                following=FollowingServiceStub(leg),
                handover=HandoverServiceStub(leg),
                order_burden=OrderBurdenServiceStub(leg),
                notes=NoteServiceStub(leg),
                phone_states=PhoneStateServiceStub(leg),
                roster=RosterServiceStub(leg),
                statistics=StatisticsServiceStub(leg),
                units=UnitDutyServiceStub(leg),
            )
        ingest, geofence = await channel(settings.ingest), await channel(settings.geofence)
        yield MeshClient(
            settings=settings,
            registry=RegistryServiceStub(registry),
            traces=TraceServiceStub(registry),
            findings=FindingServiceStub(registry),
            notices=NoticeServiceStub(registry),
            match_reviews=MatchReviewServiceStub(registry),
            order_people=PartyServiceStub(registry),
            ingest=IngestServiceStub(ingest),
            commands=CommandServiceStub(ingest),
            geofence=GeofenceServiceStub(geofence),
            legs=legs,
            desk=DeskClient(
                batteries=BatteryServiceStub(ingest),
                device_states=DeviceStateServiceStub(geofence),
                disclosures=DisclosureServiceStub(registry),
                enrolments=EnrolmentServiceStub(registry),
                record_search=RecordSearchServiceStub(registry),
            ),
            clerk=ClerkClient(
                order_extensions=OrderExtensionServiceStub(registry),
                presence_units=PresenceUnitServiceStub(registry),
            ),
        )
