"""The geofence service: folds the log and publishes what follows from it."""

import os

# Checkpoints are written by a forked child, which never calls gRPC. Its handlers would stop and start its threads at each fork. It
# reads this when it is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
