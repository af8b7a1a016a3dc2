"""The ingest service: accepts the reports of devices and writes them to the log.

In the order in which a report passes them:

    endpoints/   gRPC streams and calls of vendors, HTTP of phones; requests become batches
    intake.py    the path that all endpoints share, with a bound on the reports in flight
    admission/   may this sender report for this device, now? Routes, clocks, rate limits; counts of refused reports
    log.py       writers of the log's partitions, and last reports for a partition that lacks them

The way back to the devices:

    observed.py  what the devices do, and the charges that they report
    commands/    who asks for which interval or position; commands with their states, their delivery and their receipts
"""
