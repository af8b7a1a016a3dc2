"""What a court or a reviewer is shown of a decision. The console and the command call it, and neither decides anything here.

Its folders:

    evidence/      signed bundles of an incident: made, and verified without any server
    report/        documents for a court: on an incident, and on how an order was kept
    explain/       why an alert was given, by a refold of the log
    feasibility/   what a proposed order would cause
"""
