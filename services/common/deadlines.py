"""Deadlines of the response that more than one service needs. All others are settings of the legs, which publish them."""

RECEIPT_WITHIN_MS = 30_000
"""Time after which the police are notified of a warning without a receipt, milliseconds of mesh time."""
