"""The registry service: records of both agencies, and the joint cases that follow from them.

From a record to the log:

    agencies/         what the agencies put, each command in one transaction: ministry, police, home units, bulk, exercises
    domain/           the records, joint cases, reviews and rules: decisions without I/O
    matching/         are a respondent and a wearer one person?
    records/          how each kind of record is stored, and its translation
    working_set/      the rows that one transaction reads and changes, in memory
    cases/            joint cases, and what follows from a changed record
    reviews/          matches that a person decides
    relay.py          publishes the outbox

More records:

    wearing.py        refusals, good cause and authorised removals of tags
    device_tokens.py  tokens with which phones report, and the codes by which her phone gets one
    cctv/             requests to local governments
    findings.py       findings of reviewers

Who may read what, and for how long:

    keys.py           keys of the records
    disclosure/       reads of personal data, each with its row in the ledger
    ledger.py         the chained and signed list of disclosures
    search.py         search for people and orders
    notices.py        grounds of the Ministry's notices
    reconciliation.py comparison with the agencies' own lists
    retention.py      destruction when a record's time is over
    traces/           what happened in an incident, step by step

Below all of them: tables.py (the schema), unit_of_work.py (one transaction), transactions.py (how commands and queries open one).
"""
