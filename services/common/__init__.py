"""What all services stand on.

Its folders:

    messaging/       the flow table, and reading and publishing by JetStream
    rpc/             gRPC servers and clients: identities, roles, errors
    storage/         SQLite, PostgreSQL and files
    observability/   logs, metrics, traces, readiness
    privacy/         grounds of disclosures, keys, sealed contacts, signatures
    start/           the start of a service, and what keeps it from running
    web/             HTTP servers
"""
