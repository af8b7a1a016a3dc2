"""The geofence service: folds the log and publishes alerts.

In the order in which an entry passes them:

    consumer          reads the log of a partition and folds it; own_entries writes version, rules and ticks into it
    domain/           the fold: all decisions, from the log alone (docs/explanation/decision.md)
    publisher         alerts, requests to tags, figures and digests, in the order in which they may be published
    checkpoints       states on disk (store), valid once all their alerts are published
    positions         live positions of those whom an incident or an order concerns; their shares (live_shares) and disclosures
    her_map           the region on a protected person's map
    devices           states and reporting of the devices, for desks and operators
"""

import os

# A forked child writes the checkpoints and never calls gRPC. With fork support, gRPC would stop and restart its threads at each fork.
# gRPC reads this variable at import.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
