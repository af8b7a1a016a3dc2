"""The field service: the app of protected persons and the page of units, on their phones.

Its folders:

    phones/    her phone: cookie, proof, state
    units/     the unit's page: sign-in, task, answers
    push/      messages that wake a sleeping phone
    her_map/   the region on her map, and the way out
    domain/    what a phone may report, and where push messages may go
"""
