"""The geofence service: folds the log and publishes alerts."""

import os

# A forked child writes the checkpoints and never calls gRPC. With fork support, gRPC would stop and restart its threads at each fork.
# gRPC reads this variable at import.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
