"""Figures of the newest alerts, so that a caller who watches alerts costs no request to the server for each."""

from __future__ import annotations

from collections import OrderedDict

from tandem.common.v1 import alert_pb2

KEPT = 1_000
"""Number of figures that are kept. Those of older alerts are read from MEASURES."""


class RecentMeasures:
    """The newest figures of one partition that MEASURES holds."""

    def __init__(self) -> None:
        self._by_alert: OrderedDict[str, alert_pb2.Measure] = OrderedDict()

    def put(self, measure: alert_pb2.Measure) -> None:
        """Keeps figures that were just stored."""
        self._by_alert[measure.alert_id] = measure
        if len(self._by_alert) > KEPT:
            self._by_alert.popitem(last=False)

    def get(self, alert_id: str) -> alert_pb2.Measure | None:
        """Returns the figures of an alert; None if they aren't kept."""
        return self._by_alert.get(alert_id)

    def drop(self) -> None:
        """Drops all figures, because the stream may have lost them."""
        self._by_alert.clear()
