"""The registry service: records of both agencies, and the joint cases that follow from them.

From a record to the log:

    records/          what the agencies put: wearers, tags, orders, protected persons and their devices
    working_set/      the rows that one transaction reads and changes, in memory
    matching/         are a respondent and a wearer one person?
    reviews/          matches that a person decides
    cases/            joint cases, and what follows from a changed record
    routes/           which partitions need a device's reports
    outbox/           committed messages that aren't published yet
    relay/            publishes them
    bulk/             many records at once

More records:

    order_extensions/ later ends of orders
    wearing/          refusals, good cause and authorised removals of tags
    presence_units/   home units and beacons
    device_tokens/    tokens with which phones report
    enrolment/        codes with which her phone is connected
    cctv/             requests to local governments
    findings/         findings of reviewers
    exercises/        made-up records of drills and canaries

Who may read what, and for how long:

    keys/             keys of the records
    disclosure/       reads of personal data, each with its row in the ledger
    ledger/           the chained and signed list of disclosures
    search/           search for people and orders
    order_people/     names behind an order
    notices/          grounds of the Ministry's notices
    reconciliation/   comparison with the agencies' own lists
    retention/        destruction when a record's time is over
    traces/           what happened in an incident, step by step
"""
