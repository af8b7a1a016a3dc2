"""Pages of the statistics over all incidents of a leg, with their plots and files."""
