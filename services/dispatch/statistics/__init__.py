"""Statistics of a leg over all its incidents: a row of figures for each assignment, kept up to date beside the response."""
