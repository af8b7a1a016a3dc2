"""The `tandem` command.

Its folders:

    commands/      the commands, by heading: run, inspect, decide, prove, operate, exercise
    stack/         a mesh on this machine: its processes, its nats-server, its certificates
    simulate/      back-test, replay, demo and load generator
    monitor/       the watch and its canaries, and drills
    explain/       why an alert was given
    evidence/      signed bundles of an incident
    report/        documents for a court
    feasibility/   what a proposed order would cause
"""
