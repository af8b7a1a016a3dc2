"""The ingest service: accepts the reports of devices and writes them to the log.

In the order in which a report passes them:

    endpoints/   gRPC streams and calls of vendors, HTTP of phones; requests become batches
    admission/   may this sender report for this device, now? Routes, clocks, rate limits, room; counts of refused reports
    log/         writers of the log's partitions, and last reports for a partition that lacks them

The way back to the devices:

    sensing/     who asks for which interval or position, and what the devices do
    commands/    commands with their states, their delivery and their receipts
    batteries/   charges that devices report
"""
