"""What all services stand on.

Its folders:

    messaging/       the flow table, and reading and publishing by JetStream
    rpc/             gRPC servers and clients: identities, roles, errors
    storage/         SQLite, PostgreSQL and files
    observability/   logs, metrics, traces, readiness
    privacy/         grounds of disclosures, keys, sealed contacts, signatures
    web/             HTTP servers
"""
