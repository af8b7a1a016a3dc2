"""What any caller of the services needs: connections, stubs, deadlines, retries and bulk records.

Simulated callers stand here too: agencies, head-ends, desks, the demo, drills and the load generator.
"""
