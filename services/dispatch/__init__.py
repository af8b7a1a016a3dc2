"""The dispatch service: one leg of the response, in a process of its own.

From an alert to a unit on its way:

    leg/           the leg's record: reads alerts, decides, commits, serves the desk, keeps the deadlines
    domain/        all decisions about incidents and assignments
    roster/        offices and units, and which of them can go
    following/     live positions of targets, and what follows from their movement
    publications/  steps and disclosures on their way to their streams, and again if these lost them
    absence/       other legs that show no step

More kinds of assignments, and those who answer them:

    contact/       first contacts with the wearer
    notices/       notices of the Ministry to protected persons
    warning/       messages to protected persons, over gateways and devices
    phones/        protected persons' phones
    duty/          units' pages
    exchange/      webhooks and links: CAP, EIDO

What people read later:

    notes/         notes and calls of an incident
    handover/      handovers between shifts
    burden/        what an order caused
    statistics/    response times, dispatches for nothing
    evidence/      copies of what an incident rests on
"""
