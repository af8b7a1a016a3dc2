"""Record matching of respondents and wearers without an equal national number: names, weights and match keys. Pure."""
