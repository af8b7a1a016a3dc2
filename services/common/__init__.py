"""What all services stand on.

Its folders:

    messaging/       the flow table, and reading and publishing by JetStream
    rpc/             gRPC servers and clients: identities and roles
    evidence/        the evidence of an incident for one agency: collected from the streams, redacted, and its copies on disk
    storage/         SQLite, PostgreSQL and files
    observability/   logs, metrics, traces, readiness
    privacy/         grounds of disclosures, notices, secret keys
    web/             HTTP servers
"""
