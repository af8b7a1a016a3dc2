"""Whether a respondent and a wearer are one person, though no number says so: names, weights, and keys to find them by. Pure."""
