"""The dispatch service: one leg of the response, in a process of its own.

From an alert to a unit on its way:

    leg/           the leg's record: reads alerts, decides, commits, publishes, serves the desk, keeps the deadlines and the roster
    domain/        all decisions about incidents and assignments
    following/     live positions of targets, and what follows from their movement

More kinds of assignments, and those who answer them:

    contact.py     first contacts with the wearer
    warning/       messages to protected persons, over gateways and devices, and notices of the Ministry
    phones/        protected persons' phones
    duty/          units' pages
    exchange/      webhooks and links: steps, EIDO

What people read later:

    handover/      handovers between shifts
    burden.py      what an order caused
    statistics/    response times, dispatches for nothing
    evidence/      copies of what an incident rests on
"""
