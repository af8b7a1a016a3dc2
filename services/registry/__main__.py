"""Entry point of the registry: `python -m services.registry`. Settings come from the environment, see settings.py."""

from __future__ import annotations

import contextlib
from contextlib import closing
from functools import partial

import grpc.aio

from services.common import running
from services.common.errors import FailedPrecondition
from services.common.health_port import observed, watch_certificates, watch_disk
from services.common.messaging import bus as buses
from services.common.messaging import flow, streams
from services.common.observability import telemetry
from services.common.observability.health import Readiness
from services.common.observability.metrics import GateMetrics, ProcessMetrics, process_registry
from services.common.priority import PriorityGate
from services.common.privacy import secret_keys
from services.common.rpc import server as rpc
from services.common.rpc.history import HistoryBudget
from services.common.service import run_service
from services.common.storage import db
from services.registry.agencies.bulk import BulkService
from services.registry.agencies.exercises import Exercises, ExerciseServicer
from services.registry.agencies.ministry import MinistryService
from services.registry.agencies.police import OrderExtensionServicer, PoliceService
from services.registry.agencies.presence_units import PresenceUnits, PresenceUnitServicer
from services.registry.api import RegistryServicer
from services.registry.cases.service import CaseRepository, CaseService, Renewal, RouteRepository
from services.registry.cctv.service import CctvRequests, CctvServicer, CctvWatch
from services.registry.device_tokens import DeviceTokens, DeviceTokenServicer, Enrolments, EnrolmentServicer
from services.registry.disclosure.published import PublishedDisclosures, consume_disclosures
from services.registry.disclosure.service import Disclosures, DisclosureServicer, PartyServicer
from services.registry.findings import FindingServicer, FindingWatch, ReviewFindings
from services.registry.keys import Vault
from services.registry.ledger import open_signer
from services.registry.metrics import RegistryMetrics
from services.registry.notices import NoticeGrounds, NoticeServicer
from services.registry.reconciliation import ReconciliationService
from services.registry.records.places import AREAS
from services.registry.relay import Relay
from services.registry.retention import KeyRetention
from services.registry.reviews.api import MatchReviewServicer
from services.registry.reviews.reading import ReviewReading
from services.registry.reviews.service import ReviewService
from services.registry.search import RecordSearch, RecordSearchServicer
from services.registry.settings import RegistrySettings
from services.registry.tables import MIGRATIONS
from services.registry.traces.consumer import TraceReader
from services.registry.traces.export import Exporter
from services.registry.traces.service import Traces, TraceServicer
from services.registry.transactions import Transactions
from services.registry.unit_of_work import UnitOfWork
from services.registry.wearing import TagRecordServicer, WearingService
from tandem.registry.v1 import (
    cctv_pb2_grpc,
    device_token_pb2_grpc,
    disclosure_pb2_grpc,
    enrolment_pb2_grpc,
    exercise_pb2_grpc,
    finding_pb2_grpc,
    match_review_pb2_grpc,
    notice_pb2_grpc,
    order_extension_pb2_grpc,
    parties_pb2_grpc,
    presence_unit_pb2_grpc,
    record_search_pb2_grpc,
    registry_pb2_grpc,
    tag_record_pb2_grpc,
    trace_pb2_grpc,
)


async def prepare_database(transactions: Transactions, vault: Vault, *, log_created_at: str) -> None:
    """Unlock the database; call once before anything else. If the log is new, schedule all valid cases and routes for it.

    `log_created_at` is the time at which the server created the log's first partition: another time means a new log.
    Raises FailedPrecondition if the key ring lacks a master key that the database needs. Without it, records couldn't be found.
    """
    async with transactions.changing() as work:
        await _unlock(work, vault)
        if await work.meta.read_value("log") != log_created_at.encode():
            # The messages in the outbox were meant for the previous log.
            await work.outbox.clear()
            await RouteRepository(work.connection).mark_unsent()
            await CaseRepository(work.connection).mark_unsent()
            await work.meta.set_value("log", log_created_at.encode())


async def _unlock(work: UnitOfWork, vault: Vault) -> None:
    """Load the root key from the database, or use the vault's own, and store it wrapped with the current master key."""
    root, fingerprint = await work.meta.read_value("root"), await work.meta.read_value("key")
    with contextlib.suppress(FailedPrecondition):  # wrapped by another ring: then the fingerprint differs too
        if root is not None:
            vault.open_root(root)
    if fingerprint not in (None, vault.fingerprint):
        raise FailedPrecondition("the database was written with another key: restore TANDEM_REGISTRY_KEY or its file")
    if lacking := await work.keys.lacking():
        raise FailedPrecondition(f"the key ring lacks keys that are still needed: {', '.join(sorted(lacking))}")
    await work.meta.set_value("key", vault.fingerprint)
    await work.meta.set_value("root", vault.wrapped_root())


async def main(settings: RegistrySettings) -> None:
    """Run the service until a stop signal."""
    collector = process_registry()
    process_metrics, metrics = ProcessMetrics(collector), RegistryMetrics(collector)
    gate = PriorityGate()
    GateMetrics(gate, collector)
    vault = Vault(settings.keys())
    signer = open_signer(settings.ledger_key_file)
    warning_key = secret_keys.read_public_key(settings.warning_public_key) if settings.warning_public_key else None
    async with (
        buses.connect(settings.nats_url, "registry", settings.nats_tls, metrics=process_metrics) as bus,
        db.awaited_database(settings.database, MIGRATIONS) as database,
    ):
        log_meta = await streams.pass_gate(bus, settings)
        transactions = Transactions(database, vault, log_meta.clock)
        cases = CaseService(clock=log_meta.clock, vault=vault, partitions=log_meta.partitions, warning_key=warning_key)
        log_created_at = await bus.created_at(flow.log_stream(0))
        await db.retry_until_available(partial(prepare_database, transactions, vault, log_created_at=log_created_at))
        watch_disk(settings.data_dir, process_metrics)
        watch_certificates(settings.certificates, process_metrics)
        traces = Traces(transactions, log_meta)
        exporter = Exporter(traces, gate, metrics)
        await db.retry_until_available(exporter.prepare)
        ministry = MinistryService(transactions, cases)
        police = PoliceService(transactions, cases, log_meta.clock)
        units = PresenceUnits(transactions, cases)
        reviews = ReviewService(transactions, cases, log_meta.clock, gauges=metrics.reviews)
        reconciliation = ReconciliationService(transactions, log_meta.clock, metrics.unproven_s)
        disclosures = Disclosures(transactions, log_meta.clock, signer, on_row=exporter.notify)
        published = PublishedDisclosures(
            transactions, disclosures, held=metrics.disclosures_held, checks_incidents=telemetry.is_on()
        )
        retention = KeyRetention(transactions, cases, vault, clock=log_meta.clock)
        tokens = DeviceTokens(transactions, cases, log_meta.clock)
        enrolments = Enrolments(transactions, tokens, log_meta.clock)
        grounds = NoticeGrounds(transactions, log_meta.clock)
        exercises = Exercises(transactions, ministry, police, clock=log_meta.clock)
        wearing = WearingService(transactions, cases, disclosures, clock=log_meta.clock)
        cctv = CctvRequests(transactions, disclosures, clock=log_meta.clock)
        findings = ReviewFindings(transactions, log_meta.clock)

        def add_servicers(server: grpc.aio.Server) -> None:
            records = RegistryServicer(
                ministry,
                police,
                reviews,
                bulk=BulkService(transactions, ministry, police, units=units),
                reconciliation=reconciliation,
                signal=transactions.signal,
                area=AREAS[settings.service_area],
                clock=log_meta.clock,
            )
            registry_pb2_grpc.add_RegistryServiceServicer_to_server(records, server)
            servicer = DisclosureServicer(disclosures, log_meta.clock)
            disclosure_pb2_grpc.add_DisclosureServiceServicer_to_server(servicer, server)
            unit_servicer = PresenceUnitServicer(units, AREAS[settings.service_area])
            presence_unit_pb2_grpc.add_PresenceUnitServiceServicer_to_server(unit_servicer, server)
            device_token_pb2_grpc.add_DeviceTokenServiceServicer_to_server(DeviceTokenServicer(tokens), server)
            enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(EnrolmentServicer(enrolments), server)
            exercise_pb2_grpc.add_ExerciseServiceServicer_to_server(ExerciseServicer(exercises), server)
            trace_pb2_grpc.add_TraceServiceServicer_to_server(TraceServicer(traces), server)
            notice_pb2_grpc.add_NoticeServiceServicer_to_server(NoticeServicer(grounds), server)
            people = PartyServicer(disclosures, vault, log_meta.clock)
            parties_pb2_grpc.add_PartyServiceServicer_to_server(people, server)
            extensions = OrderExtensionServicer(police)
            order_extension_pb2_grpc.add_OrderExtensionServiceServicer_to_server(extensions, server)
            tag_records = TagRecordServicer(wearing, log_meta.clock)
            tag_record_pb2_grpc.add_TagRecordServiceServicer_to_server(tag_records, server)
            cctv_pb2_grpc.add_CctvServiceServicer_to_server(CctvServicer(cctv, log_meta.clock), server)
            finding_servicer = FindingServicer(findings, log_meta.clock)
            finding_pb2_grpc.add_FindingServiceServicer_to_server(finding_servicer, server)
            match_review_pb2_grpc.add_MatchReviewServiceServicer_to_server(
                MatchReviewServicer(ReviewReading(disclosures, vault, log_meta.clock), reviews), server
            )
            search = RecordSearchServicer(RecordSearch(disclosures, transactions), log_meta.clock)
            record_search_pb2_grpc.add_RecordSearchServiceServicer_to_server(search, server)

        readiness = Readiness()
        relay = Relay(
            transactions,
            Renewal(transactions, cases, log_meta.clock),
            bus,
            clock=log_meta.clock,
            age_s=metrics.outbox_age_s,
            partitions=log_meta.partitions,
        )
        readiness.need(relay.unable)
        readiness.want(gate.put_off)
        disclosure_reader = readiness.optional_reader(flow.DISCLOSURES.name)
        with closing(exporter):
            async with (
                rpc.serve(
                    settings, add_servicers, history=HistoryBudget(gate), unread=process_metrics.streams_unread
                ) as server,
                observed(
                    settings.host,
                    settings.metrics_port,
                    lambda: server.unready,
                    metrics=process_metrics,
                    degraded=lambda: server.degraded,
                ),
            ):
                await running.until_stopped(
                    rpc.keep_health(server, readiness, bus),
                    relay.run(),
                    disclosures.keep_signed(),
                    retention.run(),
                    reviews.run(),
                    reconciliation.run(),
                    CctvWatch(cctv, metrics.cctv_overdue).run(),
                    FindingWatch(findings, metrics.findings_overdue).run(),
                    consume_disclosures(
                        bus,
                        published,
                        log_meta.log_id,
                        gate=gate,
                        put_off=metrics.put_off(flow.DISCLOSURES.name, "ledger"),
                        health=disclosure_reader,
                    ),
                    published.run(bus, gate),
                    TraceReader(
                        transactions=transactions,
                        bus=bus,
                        log_meta=log_meta,
                        on_stored=exporter.notify,
                        gate=gate,
                        metrics=metrics,
                        readiness=readiness,
                    ).run(),
                    exporter.run(),
                )


if __name__ == "__main__":
    run_service("registry", RegistrySettings, main)
