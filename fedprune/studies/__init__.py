"""Studies: several methods, settings and seeds under equal conditions, their statistics and their report."""
