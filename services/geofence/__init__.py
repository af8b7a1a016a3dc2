"""The geofence service: folds the log and publishes alerts.

Its folders, in the order in which an entry passes them:

    rules/       rules of the decision in the log, set by an operator and renewed each day
    domain/      the fold: all decisions, from the log alone (docs/explanation/decision.md)
    outputs/     alerts, requests to tags, figures and digests, in the order in which they may be published
    sharing/     live positions of those whom an incident or an order concerns
    her_map/     the region on a protected person's map
    devices/     states and reporting of the devices, for desks and operators
    what_if/     decisions for made-up tracks
"""

import os

# A forked child writes the checkpoints and never calls gRPC. With fork support, gRPC would stop and restart its threads at each fork.
# gRPC reads this variable at import.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
