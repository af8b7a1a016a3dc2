"""`python -m services.ingest`: the endpoint for positions and equipment events."""

from __future__ import annotations

from functools import partial

import grpc.aio

from services.common import running
from services.common.health_port import observed, watch_certificates, watch_streams
from services.common.messaging import bus as buses
from services.common.messaging import flow, streams
from services.common.observability.health import Readiness
from services.common.observability.metrics import GateMetrics, ProcessMetrics, process_registry
from services.common.priority import PriorityGate
from services.common.rpc import server as rpc
from services.common.rpc.history import BUSY_SHARE, HistoryBudget
from services.common.service import run_service
from services.ingest.admission.checks import Checks, Quarantine, RateLimits
from services.ingest.admission.routes import Routes, count_reporting
from services.ingest.commands.api import CommandApi, ReportingList, SensingRequests
from services.ingest.commands.service import Commands
from services.ingest.domain import ReportedBatteries
from services.ingest.endpoints import http
from services.ingest.endpoints.grpc_api import IngestApi
from services.ingest.intake import Intake
from services.ingest.log import LastReports, LogWriter, LogWriters
from services.ingest.metrics import IngestMetrics
from services.ingest.observed import BatteryApi, ObservedReports, ObservedSharing
from services.ingest.settings import IngestSettings
from tandem.ingest.v1 import battery_pb2_grpc, ingest_pb2_grpc


async def main(settings: IngestSettings) -> None:
    """Runs the ingest service until SIGTERM."""
    shared_metrics = ProcessMetrics(process_registry())
    watch_certificates(settings.certificates, shared_metrics)
    gate = PriorityGate()
    GateMetrics(gate, shared_metrics.registry)
    async with buses.connect(settings.nats_url, "ingest", settings.nats_tls, metrics=shared_metrics) as bus:
        log_meta = await streams.pass_gate(bus, settings)
        clock = log_meta.clock
        readiness = Readiness()
        readiness.want(gate.put_off)
        routes = Routes(bus=bus, clock=clock, partitions=log_meta.partitions, health=readiness.reader("devices"))
        await routes.load()
        metrics = IngestMetrics(shared_metrics.registry)
        writers = {
            p: LogWriter(bus, p, backfill_per_s=settings.backfill_reports_per_s, metrics=metrics)
            for p in range(log_meta.partitions)
        }
        for p, writer in writers.items():
            metrics.watch_lag(p, "live", writer.lag_s)
            metrics.watch_lag(p, "backfill", writer.backfill_lag_s)
            readiness.need(writer.unable)
        last_reports = LastReports(routes, writers)
        await last_reports.read_tail(bus)
        quarantine = Quarantine(bus, clock, metrics)
        rate_limits = RateLimits(settings.device_reports_per_s, settings.device_reports_burst)
        observed_reports, batteries = ObservedReports(), ReportedBatteries()
        intake = Intake(
            Checks(routes, quarantine, rate_limits, clock=clock),
            LogWriters(writers, clock),
            last_reports,
            rate_limits=rate_limits,
            clock=clock,
            observed=observed_reports,
            batteries=batteries,
            metrics=metrics,
        )
        metrics.waiting.set_function(lambda: intake.in_flight)
        commands = Commands(
            bus,
            routes,
            clock,
            metrics=metrics,
            observed=observed_reports,
            health=readiness.optional_reader(flow.COMMANDS.name),
        )
        await commands.load()
        sensing = SensingRequests(bus, commands, clock, health=readiness.optional_reader(flow.SENSING.name))
        sharing = ObservedSharing(
            bus, observed_reports, batteries, health=readiness.optional_reader(flow.OBSERVED.name)
        )
        reporting = ReportingList(commands, observed_reports, routes, clock=clock)
        metrics.devices.set_function(partial(count_reporting, routes))
        metrics.disobeying.set_function(reporting.count_disobeying)
        reports = IngestApi(intake, commands.delivery, quarantine, metrics=metrics)
        metrics.unanswered.set_function(lambda: reports.unanswered)

        def add_servicers(server: grpc.aio.Server) -> None:
            ingest_pb2_grpc.add_IngestServiceServicer_to_server(reports, server)
            api = CommandApi(commands, reporting, routes, clock=clock)
            ingest_pb2_grpc.add_CommandServiceServicer_to_server(api, server)
            battery_pb2_grpc.add_BatteryServiceServicer_to_server(BatteryApi(batteries, routes), server)

        phones = http.PhoneEndpoint(
            intake, routes, commands.delivery, quarantine=quarantine, clock=clock, metrics=metrics
        )
        async with (
            running.outlasting(
                quarantine.run(), commands.publish_steps(), *(writer.run() for writer in writers.values())
            ) as lasting,
            rpc.serve(
                settings,
                add_servicers,
                history=HistoryBudget(gate, BUSY_SHARE),
                unread=shared_metrics.streams_unread,
            ) as server,
            http.serve(settings, phones, shared_metrics.http_closed),
            observed(
                settings.host,
                settings.metrics_port,
                lambda: server.unready,
                metrics=shared_metrics,
                degraded=lambda: server.degraded,
            ),
        ):
            await running.until_stopped(
                rpc.keep_health(server, readiness, bus),
                routes.follow(last_reports.route_changed),
                last_reports.run(),
                intake.run(),
                commands.follow(),
                sensing.follow(),
                sharing.publish(),
                sharing.follow(),
                commands.watch_time(),
                watch_streams(bus),
                *lasting,
            )


if __name__ == "__main__":
    run_service("ingest", IngestSettings, main)
