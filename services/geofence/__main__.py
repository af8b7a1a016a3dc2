"""`python -m services.geofence`: evaluates its partitions of the log and serves gRPC."""

from __future__ import annotations

import asyncio
from functools import partial

import grpc.aio

from services.common import running
from services.common.health_port import observed, watch_certificates, watch_disk
from services.common.messaging import bus as buses
from services.common.messaging import streams
from services.common.messaging.bus import Bus
from services.common.observability.health import Readiness
from services.common.observability.metrics import GateMetrics, ProcessMetrics, process_registry
from services.common.priority import PriorityGate
from services.common.rpc import server as rpc
from services.common.rpc.history import BUSY_SHARE, HistoryBudget
from services.common.service import run_service
from services.geofence.api import GeofenceApi
from services.geofence.consumer import Evaluator
from services.geofence.devices import DeviceStateApi
from services.geofence.disclosures import DisclosureOutbox
from services.geofence.her_map import RegionMapApi
from services.geofence.metrics import GeofenceMetrics
from services.geofence.positions import PositionServicer
from services.geofence.settings import GeofenceSettings
from services.geofence.store import CheckpointStore
from tandem.geofence.v1 import (
    device_state_pb2_grpc,
    geofence_pb2_grpc,
    positions_pb2_grpc,
    region_map_pb2_grpc,
)


async def main(settings: GeofenceSettings) -> None:
    """Runs the geofence service until SIGTERM."""
    name, keys = _name(settings), settings.state_keys
    metrics = ProcessMetrics(process_registry())
    gate = PriorityGate()
    GateMetrics(gate, metrics.registry)
    history = HistoryBudget(gate, BUSY_SHARE)
    async with buses.connect(settings.nats_url, name, settings.nats_tls, metrics=metrics) as bus:
        log_meta = await streams.pass_gate(bus, settings)
        store = CheckpointStore(settings.data_dir / name, keys)
        evaluator_metrics = GeofenceMetrics(metrics.registry)
        evaluators = {
            p: Evaluator(bus, store, settings, log_meta=log_meta, partition=p, metrics=evaluator_metrics, gate=gate)
            for p in settings.partitions(log_meta.partitions)
        }
        for p, evaluator in evaluators.items():
            evaluator_metrics.watch(
                p,
                evaluator.log_age_s,
                sequence=evaluator.applied_sequence,
                secondary_waiting=evaluator.secondary_waiting,
            )
            await evaluator.restore()
        watch_disk(settings.data_dir, metrics)
        watch_certificates(settings.certificates, metrics)
        outbox = DisclosureOutbox(settings.data_dir / name, log_meta.clock)
        api = GeofenceApi(bus, evaluators, log_meta.partitions, history=history)
        positions = PositionServicer(
            evaluators=evaluators.values(), outbox=outbox, clock=log_meta.clock, interval_s=settings.share_every_s
        )

        def add_servicers(server: grpc.aio.Server) -> None:
            geofence_pb2_grpc.add_GeofenceServiceServicer_to_server(api, server)
            positions_pb2_grpc.add_PositionServiceServicer_to_server(positions, server)
            states = DeviceStateApi(evaluators, log_meta.partitions)
            device_state_pb2_grpc.add_DeviceStateServiceServicer_to_server(states, server)
            her_map = RegionMapApi(evaluators, log_meta.partitions, outbox=outbox, clock=log_meta.clock)
            region_map_pb2_grpc.add_RegionMapServiceServicer_to_server(her_map, server)

        async with (
            running.outlasting(outbox.run(bus)) as lasting,
            rpc.serve(settings, add_servicers, history=history, unread=metrics.streams_unread) as server,
            observed(
                settings.host,
                settings.metrics_port,
                lambda: server.unready,
                metrics=metrics,
                degraded=lambda: server.degraded,
            ),
        ):
            await running.until_stopped(_evaluate(evaluators, server, bus, gate=gate), *lasting)


def _name(settings: GeofenceSettings) -> str:
    return f"geofence-{settings.replica}"


async def _evaluate(evaluators: dict[int, Evaluator], server: rpc.Server, bus: Bus, *, gate: PriorityGate) -> None:
    """Folds all partitions. Reports SERVING once each has caught up with the log, and only while all can decide."""
    behind = set(evaluators)
    readiness = Readiness()
    readiness.want(gate.put_off)
    for evaluator in evaluators.values():
        readiness.need(evaluator.unable)
    async with asyncio.TaskGroup() as tasks:

        def caught_up(partition: int) -> None:
            behind.discard(partition)
            if not behind:
                tasks.create_task(rpc.keep_health(server, readiness, bus))

        for partition, evaluator in evaluators.items():
            tasks.create_task(evaluator.run(partial(caught_up, partition)))
        if not evaluators:
            tasks.create_task(rpc.keep_health(server, readiness, bus))


if __name__ == "__main__":
    run_service("geofence", GeofenceSettings, main, name_of=_name)
