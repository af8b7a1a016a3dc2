"""Runs one leg of the response, on its own port and database: python -m services.dispatch --leg probation|police|warning"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import AsyncExitStack, closing
from functools import partial
from pathlib import Path

import grpc.aio
from prometheus_client import CollectorRegistry, Counter

from services.common import running
from services.common.clock import MeshClock
from services.common.evidence.collector import EvidenceFiles
from services.common.health_port import observed, watch_certificates, watch_disk
from services.common.messaging import bus as buses
from services.common.messaging import flow, streams
from services.common.observability.health import ReaderHealth, Readiness
from services.common.observability.metrics import GateMetrics, ProcessMetrics, process_registry
from services.common.observability.telemetry import logger
from services.common.rpc import server as rpc
from services.common.service import run_service
from services.common.storage.db import awaited_database
from services.common.web.receivers import read as read_receivers
from services.dispatch.burden import OrderBurdenApi
from services.dispatch.contact import ContactApi, ContactConfirmations
from services.dispatch.duty.access import UnitAccess
from services.dispatch.duty.api import TaskTargets, UnitDutyApi
from services.dispatch.evidence.api import EvidenceApi, EvidenceReading
from services.dispatch.evidence.retention import EvidenceRetention
from services.dispatch.exchange.links import LinkEndpoint, Links, open_key
from services.dispatch.exchange.store import ExchangeStore
from services.dispatch.exchange.webhooks import ReviewAlarms, Webhooks
from services.dispatch.following.api import FollowingApi
from services.dispatch.following.follower import TargetFollower
from services.dispatch.following.pursuit import Pursuit
from services.dispatch.following.targets import Targets
from services.dispatch.handover.api import HandoverApi
from services.dispatch.leg.api import DispatchApi, NoteApi, RosterApi
from services.dispatch.leg.availability import open_travel_times
from services.dispatch.leg.consumer import Reconciler, StepPublications, adopt_steps, consume_alerts, consume_peers
from services.dispatch.leg.publications import LegDisclosures
from services.dispatch.leg.service import LegService, open_leg, watch_deadlines
from services.dispatch.leg.store import Store
from services.dispatch.metrics import DispatchMetrics, EvidenceMetrics, FollowingMetrics, WarningMetrics, WebhookMetrics
from services.dispatch.phones.api import AfterwardsApi, PhoneNoticeApi, PhoneStateApi, PhoneStore
from services.dispatch.settings import DispatchSettings, for_leg
from services.dispatch.statistics.api import StatisticsApi
from services.dispatch.statistics.figures import FiguresCollector
from services.dispatch.warning.phones import PhoneAccess
from services.dispatch.warning.service import LateWarnings, open_warnings
from tandem.dispatch.v1 import (
    afterwards_pb2_grpc,
    calls_pb2_grpc,
    dispatch_pb2_grpc,
    evidence_pb2_grpc,
    following_pb2_grpc,
    handover_pb2_grpc,
    notes_pb2_grpc,
    order_burden_pb2_grpc,
    phone_notice_pb2_grpc,
    phone_state_pb2_grpc,
    roster_pb2_grpc,
    statistics_pb2_grpc,
    unit_duty_pb2_grpc,
)

MIGRATIONS = Path(__file__).parent / "leg" / "migrations"
EXCHANGE_MIGRATIONS = Path(__file__).parent / "exchange" / "migrations"


async def run(settings: DispatchSettings, registry: CollectorRegistry) -> None:
    """Runs the leg until it is stopped, with its metrics in a registry.

    The leg serves its desk and keeps its deadlines with or without NATS.
    """
    process_metrics, metrics = ProcessMetrics(registry), DispatchMetrics(registry)
    async with (
        awaited_database(settings.database, MIGRATIONS) as database,
        open_travel_times(settings.osrm_url, metrics.road_times_failed) as travel_times,
        open_leg(
            settings.leg,
            Store(database),
            settings.clock,
            deadlines=settings.deadlines,
            metrics=metrics,
            travel_times=travel_times,
        ) as leg,
    ):
        GateMetrics(leg.record.gate, registry)
        policy, following_metrics = leg.name.policy, FollowingMetrics(registry)
        follower = _follower(settings, leg, following_metrics)
        files, evidence_metrics = EvidenceFiles(settings.evidence), EvidenceMetrics(registry)
        evidence_api = EvidenceApi(leg.name, settings.clock, store=leg.store)
        disclosures = LegDisclosures(leg.name, leg.store)
        statistics_api = StatisticsApi(leg.name, leg.store, settings.clock, disclosures=disclosures)
        phone_api, phones = PhoneNoticeApi(leg.name), PhoneStore(leg.store)
        afterwards_api = AfterwardsApi(leg.name, phones)
        task_targets = TaskTargets(leg, follower, settings.clock, disclosures=disclosures)
        watch_disk(settings.data_dir, process_metrics)
        watch_certificates(settings.certificates, process_metrics)
        readiness = Readiness()
        readiness.need(leg.watch.unable)
        readiness.want(leg.record.gate.put_off)
        alerts, peers = readiness.reader(flow.ALERTS.name), readiness.optional_reader(flow.INCIDENTS.name)
        async with (
            rpc.serve(
                settings,
                partial(
                    _add_servicers,
                    leg=leg,
                    follower=follower,
                    evidence_api=evidence_api,
                    statistics_api=statistics_api,
                    phone_api=phone_api,
                    phone_state_api=PhoneStateApi(leg.name, phones, settings.clock),
                    afterwards_api=afterwards_api,
                    task_targets=task_targets,
                    clock=settings.clock,
                ),
                history=leg.history,
                unread=process_metrics.streams_unread,
            ) as server,
            observed(
                settings.host,
                settings.metrics_port,
                lambda: server.unready,
                metrics=process_metrics,
                degraded=lambda: server.degraded,
            ),
            AsyncExitStack() as stack,
        ):
            stack.enter_context(closing(leg.record.subscriptions))
            warnings = LateWarnings(leg, settings.warning_database) if policy.warns_persons else None
            works = [
                rpc.keep_health(server, readiness),
                watch_deadlines(leg),
                adopt_steps(leg.store, leg.record.outbox),
                FiguresCollector(leg.store, leg.record.gate).run(),
                mesh(
                    settings,
                    leg,
                    warnings,
                    evidence_api=evidence_api,
                    statistics_api=statistics_api,
                    task_targets=task_targets,
                    evidence_metrics=evidence_metrics,
                    files=files,
                    alerts=alerts,
                    peers=peers,
                    metrics=process_metrics,
                ),
                exchange(settings, leg, WebhookMetrics(registry), http_closed=process_metrics.http_closed),
            ]
            if warnings:
                readiness.need(warnings.unable)
                opening = open_warnings(
                    settings, leg, WarningMetrics(registry), http_closed=process_metrics.http_closed
                )
                works.append(warnings.run(opening, lambda opened: _connect(opened.phones, phone_api, afterwards_api)))
            if follower:
                works.append(follower.run())
            if policy.commands_tags and settings.ingest:
                works.append(Pursuit(leg, settings, following_metrics).run())
            if policy.contacts_wearer and settings.ingest:
                works.append(ContactConfirmations(leg, settings).run())
            await running.until_stopped(*works)


def _connect(phones: PhoneAccess, phone_api: PhoneNoticeApi, afterwards_api: AfterwardsApi) -> None:
    phone_api.connected(phones)
    afterwards_api.connected(phones.ended)


def _follower(settings: DispatchSettings, leg: LegService, metrics: FollowingMetrics) -> TargetFollower | None:
    """Follower of the targets; None if the leg sends no units or no evaluators are configured."""
    if not leg.name.policy.has_units:
        return None
    if not settings.geofence:
        logger().warning("follows_nobody", reason="TANDEM_GEOFENCE isn't set")
        return None
    return TargetFollower(leg, Targets(settings, leg.last_known_positions, metrics), settings.clock)


async def exchange(
    settings: DispatchSettings, leg: LegService, metrics: WebhookMetrics, *, http_closed: Counter
) -> None:
    """Serves the leg's webhooks and links, as far as they are configured. Neither needs NATS, and no offer waits for their database."""
    has_links = settings.link_port is not None and leg.name.policy.has_units
    if settings.webhooks is None and not has_links:
        await asyncio.Event().wait()
    receivers = read_receivers(settings.webhooks) if settings.webhooks else ()
    async with awaited_database(settings.exchange_database, EXCHANGE_MIGRATIONS) as database, AsyncExitStack() as stack:
        store, links = ExchangeStore(database), None
        if has_links and settings.link_port is not None:
            links = Links(leg.name, open_key(settings.link_key), settings.link_url)
            endpoint = LinkEndpoint(leg, store, links)
            tls = settings.tls_files()[:2] if settings.tls else None
            await stack.enter_async_context(endpoint.served(settings.host, settings.link_port, tls, closed=http_closed))
        webhooks = Webhooks(
            leg.name,
            leg.record,
            store,
            receivers=receivers,
            links=links,
            metrics=metrics,
            is_outward=leg.is_outward,
        )
        alarms = ReviewAlarms(settings, store, receivers=receivers, metrics=metrics)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(webhooks.run())
            tasks.create_task(alarms.run())
        await asyncio.Event().wait()  # without webhooks, keep serving the links


def _add_servicers(
    server: grpc.aio.Server,
    *,
    leg: LegService,
    follower: TargetFollower | None,
    evidence_api: EvidenceApi,
    statistics_api: StatisticsApi,
    phone_api: PhoneNoticeApi,
    phone_state_api: PhoneStateApi,
    afterwards_api: AfterwardsApi,
    task_targets: TaskTargets,
    clock: MeshClock,
) -> None:
    dispatch_pb2_grpc.add_DispatchServiceServicer_to_server(DispatchApi(leg), server)
    calls_pb2_grpc.add_ContactServiceServicer_to_server(ContactApi(leg), server)
    roster_pb2_grpc.add_RosterServiceServicer_to_server(RosterApi(leg, clock), server)
    handover_pb2_grpc.add_HandoverServiceServicer_to_server(HandoverApi(leg, clock), server)
    order_burden_pb2_grpc.add_OrderBurdenServiceServicer_to_server(OrderBurdenApi(leg), server)
    evidence_pb2_grpc.add_EvidenceServiceServicer_to_server(evidence_api, server)
    notes_pb2_grpc.add_NoteServiceServicer_to_server(NoteApi(leg), server)
    phone_notice_pb2_grpc.add_PhoneNoticeServiceServicer_to_server(phone_api, server)
    phone_state_pb2_grpc.add_PhoneStateServiceServicer_to_server(phone_state_api, server)
    afterwards_pb2_grpc.add_AfterwardsServiceServicer_to_server(afterwards_api, server)
    following_pb2_grpc.add_FollowingServiceServicer_to_server(FollowingApi(leg, follower, clock), server)
    duty_api = UnitDutyApi(leg, UnitAccess(leg, clock), task_targets)
    unit_duty_pb2_grpc.add_UnitDutyServiceServicer_to_server(duty_api, server)
    statistics_pb2_grpc.add_StatisticsServiceServicer_to_server(statistics_api, server)


async def mesh(
    settings: DispatchSettings,
    leg: LegService,
    warnings: LateWarnings | None,
    *,
    evidence_api: EvidenceApi,
    statistics_api: StatisticsApi,
    task_targets: TaskTargets,
    evidence_metrics: EvidenceMetrics,
    files: EvidenceFiles,
    alerts: ReaderHealth,
    peers: ReaderHealth,
    metrics: ProcessMetrics,
) -> None:
    """Connects the leg to the mesh: consumes alerts and the other legs' steps, and publishes the leg's steps."""
    async with buses.connect(settings.nats_url, f"dispatch-{leg.name}", settings.nats_tls, metrics=metrics) as bus:
        log_meta = await streams.pass_gate(bus, settings)
        retention = reading = None
        if leg.name.policy.keeps_evidence:
            retention = EvidenceRetention(
                leg.name,
                leg.store,
                bus,
                log_meta=log_meta,
                files=files,
                gate=leg.record.gate,
                metrics=evidence_metrics,
            )
            reading = EvidenceReading(leg.name, bus, log_meta, files=files, retention=retention)
        evidence_api.connected(bus, reading)
        statistics_api.connected(bus)
        task_targets.connected(bus)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(consume_alerts(bus, leg, log_meta.log_id, health=alerts))
            tasks.create_task(consume_peers(bus, leg, log_meta.log_id, health=peers))
            publications = StepPublications(bus, leg, log_meta.log_id)
            tasks.create_task(leg.record.outbox.run(bus, publications.settle))
            tasks.create_task(leg.record.outbox.note(publications.mark))
            tasks.create_task(publications.run())
            tasks.create_task(Reconciler(bus, leg, log_meta.log_id).run())
            if warnings:
                tasks.create_task(warnings.follow(bus, log_meta))
            if retention:
                tasks.create_task(retention.run())
            tasks.create_task(LegDisclosures(leg.name, leg.store).run(bus))


def main() -> None:
    """Runs a leg with the settings of the command line and the environment."""
    parser = argparse.ArgumentParser(prog="python -m services.dispatch", description=__doc__)
    parser.add_argument("--leg", required=True, choices=flow.LEGS, help="which half of the response this process is")
    leg = parser.parse_args().leg
    run_service(f"dispatch-{leg}", partial(for_leg, leg), lambda settings: run(settings, process_registry()))


if __name__ == "__main__":
    main()
