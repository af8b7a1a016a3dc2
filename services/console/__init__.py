"""The console: the desks' and reviewers' pages, a client of all services.

Its folders, in the order of a desk's work:

    sign_in/         accounts, sessions, OpenID Connect
    pages/           the table of routes, templates and texts
    live/            the live page: incidents, alerts, positions
    review/          an incident afterwards: replay, trace, evidence, documents
    match_reviews/   decisions on matches
    handover/        handovers between shifts
    roster/          offices and units
    people/          search for people and orders
    phones/          links and codes for phones
    devices/         the own side's devices
    records/         entry of records by clerks
    operators/       reporting and refused reports
    statistics/      response times and burdens
    burden/          what an order caused
    domain/          what the pages show, from messages alone
"""
