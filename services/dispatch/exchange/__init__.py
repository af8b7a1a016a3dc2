"""Output of a leg to systems that don't call it: webhooks, and links by which units on the road accept an offer."""
