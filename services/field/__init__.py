"""The field service: the app of protected persons and the page of units, on their phones.

Its modules:

    views.py, her_map.py   her app: notices, reports, summaries; the region on her map, and the way out
    units.py               the unit's page: sign-in, task, answers
    guard.py               access control of both, by cookies and proofs (credentials.py)
    news.py, push.py       what wakes an open page, and messages that wake a sleeping phone
    domain.py              what a phone may report, and where push messages may go
"""
