"""The console: the desks' and reviewers' pages, a client of all services.

From the top down:

    routes.py    the table of routes: each page with its roles
    live/        the live page: incidents, alerts, positions, the chosen incident
    review/      an incident afterwards: search, replay, trace, evidence, documents
    pages/       all other pages, with what each page needs: guard, templates, texts, refusals
    mesh.py      calls of the services
    sign_in/     sessions and the identity provider
    domain/      what the pages show, as pure functions
"""
