"""What a leg tells to systems that don't call it: webhooks, and links with which those on the road answer."""
