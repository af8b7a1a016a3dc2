"""Every reader of every stream of the flow table, each with what it is given and how its answer is seen (tests/contract)."""
